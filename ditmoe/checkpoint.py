"""Files that are never half-written, and loading that never executes code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

FORMAT = "ditmoe-1"
NAME = "checkpoint.pt"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all: into a hidden neighbour, which takes the name at the end.

    A crash, a kill or a full disk leaves the old file as it was. Folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: tensors, and plain values only."""
    with replacing(path) as stream:
        torch.save({"format": FORMAT, **content}, stream)


def locate(path: str | Path) -> Path:
    """The checkpoint file of a run's folder, or the file itself.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        where = f"folder {path} holds no {NAME}" if path.is_dir() else f"{path} does not exist"
        raise FileNotFoundError(f"checkpoint must be a run's folder or a file in it, but {where}")
    return file


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing anything in it.

    Raises:
        ValueError: if the file is truncated, was written by another program, or holds more than plain values.
    """
    file = locate(path)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler's own words mean nothing to whoever named the wrong file
        raise ValueError(f"{file} is no ditmoe checkpoint, or is damaged") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{file} is no ditmoe checkpoint: it lacks the entry format = {FORMAT}")
    return content
