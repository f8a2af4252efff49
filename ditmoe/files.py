"""Files and folders that are whole or not there, whoever is killed in between."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all: into a hidden neighbour, which takes the name at the end.

    A crash, a kill or a full disk leaves the old file as it was. Folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = hidden(path)
    try:
        with open(draft, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hidden(path: Path) -> Path:
    """Where something is written that is to become `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove(folder: Path) -> None:
    """Take a folder away at once: whoever is killed in between leaves litter, not half a folder."""
    if folder.exists():
        away = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
        folder.rename(away)
        discard(away)


def discard(litter: Path) -> None:
    """Take away what nobody needs, as far as it can be."""
    if litter.is_dir():
        shutil.rmtree(litter, ignore_errors=True)
    else:
        with suppress(OSError):
            litter.unlink()


def sync(path: Path) -> None:
    """Have a file or the names in a folder on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
