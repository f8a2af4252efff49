"""Files that are never half-written, and loading that never executes code."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

FORMAT = "ditmoe-1"
NAME = "checkpoint.pt"


def write_atomic(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file so that a crash, a kill or a full disk leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: tensors, and plain values only."""
    write_atomic(path, lambda file: torch.save({"format": FORMAT, **content}, file))


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
