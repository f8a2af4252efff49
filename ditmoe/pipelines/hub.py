"""A pipeline's folder by the name that a person gave: a folder here, or a repository of the Hugging Face hub."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditmoe.checkpoint.atomic import recover
from ditmoe.checkpoint.fit import CONFIG, WEIGHTS
from ditmoe.outside import printable
from ditmoe.pipelines.trusted_folder import INDEX, LORA, MODELS, SCHEDULER, check_index, read_index

HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""Options that are the hub's, as everything that fetches from it calls them."""
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def folder_of(name: str | Path, variant: str | None = None, **options: Any) -> Path:
    """The folder itself, or where a repository was fetched to: the files alone that `check_folder` and diffusers read.

    What is there is looked at in `check_folder`; a repository whose index names other parts is refused before any
    weights are fetched.

    Args:
        variant: of the weights, as diffusers has it in their files' names; a part without one is fetched without.
        options: of `HUB`; the same as of `huggingface_hub.snapshot_download`.

    Raises:
        FileNotFoundError: one line, if there is neither.
        ValueError: one line, if the repository is no pipeline of ditmoe.
    """
    recover(Path(name))
    text = str(name)
    if Path(name).exists() or not REPOSITORY.fullmatch(text):
        return Path(name)
    folder = _fetch(text, [INDEX, SCHEDULER, LORA, *(f"{part}/{CONFIG}" for part in MODELS)], options)
    check_index(read_index(folder), folder / INDEX)
    parts: Sequence[str] = MODELS
    for mark in [variant, None] if variant else [None]:
        folder = _fetch(text, [file for part in parts for file in weights_of(part, mark)], options)
        parts = [part for part in parts if not any((folder / part).glob("*.safetensors"))]
        if not parts:
            break
    return folder


def weights_of(part: str, variant: str | None = None) -> list[str]:
    """Patterns of a part's files of weights, whole or in shards."""
    mark = f".{variant}" if variant else ""
    names = (f"{mark}.safetensors", f"{mark}-*-of-*.safetensors", f".safetensors.index{mark}.json")
    return [f"{part}/{WEIGHTS}{name}" for name in names]


def _fetch(name: str, patterns: Sequence[str], options: dict[str, Any]) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), **options))
    except Exception as error:  # the hub fails in many ways, and explains in paragraphs
        reason = printable(next(iter(str(error).splitlines()), "") or type(error).__name__)[:200]
        raise FileNotFoundError(
            f"{name} is no folder here, and the hub did not give a repository of that name: {reason}"
        ) from error
