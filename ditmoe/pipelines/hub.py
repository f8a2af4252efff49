"""Find a pipeline's folder by name, a local one or a repository of the Hugging Face hub, and upload one."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import replacing
from ditmoe.checkpoint.atomic import recover
from ditmoe.checkpoint.fit import CONFIG, WEIGHTS
from ditmoe.outside import printable
from ditmoe.pipelines.card import write_card
from ditmoe.pipelines.index import INDEX
from ditmoe.pipelines.trusted_folder import LORA, MODELS, SCHEDULER, check_index, read_index

HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""Options for `huggingface_hub`, under its names."""
UPLOAD = ("repo_id", "private", "token", "commit_message", "create_pr")
"""Options for uploads, under diffusers' names."""
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


def lora_of(name: Any, file: str, **options: Any) -> Any:
    """The folder into which the LoRA file of a repository was downloaded; all that is no such name as it is."""
    if not isinstance(name, str) or Path(name).exists() or not REPOSITORY.fullmatch(name):
        return name
    return _fetch(name, [file], options)


def upload(
    folder: Path,
    repository: str,
    kind: str,
    classes: Sequence[str],
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> None:
    """Upload a pipeline's folder, and a model card if it holds none.

    Raises:
        ConnectionError: with one line, if the hub does not take it.
    """
    import huggingface_hub

    with _one_line(f"{repository} must be a repository that the hub lets you write", ConnectionError):
        made = huggingface_hub.create_repo(repository, exist_ok=True, private=private, token=token)
        if not (card := folder / "README.md").exists():
            with replacing(card) as stream:
                stream.write(write_card(kind, made.repo_id, classes, {}, None).encode())
        huggingface_hub.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            token=token,
            commit_message=commit_message or "Upload pipeline",
            create_pr=create_pr,
        )


def _fetch(name: str, patterns: Sequence[str], options: dict[str, Any]) -> Path:
    import huggingface_hub

    with _one_line(
        f"{name} must be a folder here or a repository that the hub can provide", FileNotFoundError
    ):
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), **options))


@contextmanager
def _one_line(wanted: str, kind: type[OSError]) -> Iterator[None]:
    """The hub's errors, of many kinds and with long messages, as one kind with one line."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "").removeprefix("Got: ") or type(error).__name__
        raise kind(f"{wanted}, got {printable(reason)[:200]}") from error
