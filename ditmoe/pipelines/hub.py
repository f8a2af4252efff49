"""Find a pipeline's folder by name: a local folder, or a repository of the Hugging Face hub."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditmoe.checkpoint.atomic import recover
from ditmoe.checkpoint.fit import CONFIG, WEIGHTS
from ditmoe.outside import printable
from ditmoe.pipelines.trusted_folder import INDEX, LORA, MODELS, SCHEDULER, check_index, read_index

HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""Options for `huggingface_hub`, under its names."""
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def folder_of(name: str | Path, variant: str | None = None, **options: Any) -> Path:
    """A local folder as it is, or the folder into which a repository was downloaded.

    Downloads only the files that `check_folder` and diffusers read. A repository whose index names foreign components
    is refused before its weights are downloaded. The files themselves are checked by `check_folder`.

    Args:
        variant: of the weights, as in diffusers' file names; components without it are fetched without a variant.
        options: from `HUB`, for `huggingface_hub.snapshot_download`.

    Raises:
        FileNotFoundError: with one line, if there is neither a folder nor a repository.
        ValueError: with one line, if the repository is not a ditmoe pipeline.
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
    """File name patterns of a component's weights, in one file or in shards."""
    mark = f".{variant}" if variant else ""
    names = (f"{mark}.safetensors", f"{mark}-*-of-*.safetensors", f".safetensors.index{mark}.json")
    return [f"{part}/{WEIGHTS}{name}" for name in names]


def _fetch(name: str, patterns: Sequence[str], options: dict[str, Any]) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), **options))
    except Exception as error:  # the hub raises many kinds of errors, with long messages
        reason = printable(next(iter(str(error).splitlines()), "") or type(error).__name__)[:200]
        raise FileNotFoundError(
            f"{name} must be a folder here or a repository that the hub can provide, got {reason}"
        ) from error
