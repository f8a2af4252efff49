"""Removes empty folders that Hydra created for a command that was then rejected."""

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def empty_folders(folder: Path, levels: int = 3) -> frozenset[str]:
    """Real paths of the empty folders among a folder and its subfolders, to this many levels."""
    try:
        with os.scandir(folder) as found:
            below = list(found)
    except OSError:
        return frozenset()
    if not below:
        return frozenset([os.path.realpath(folder)])
    inner = [Path(entry) for entry in below if levels > 1 and entry.is_dir(follow_symlinks=False)]
    return frozenset[str]().union(*(empty_folders(each, levels - 1) for each in inner))


@contextmanager
def leaving_none_empty(folder: Path, before: Collection[str] = ()) -> Iterator[None]:
    """At exit, remove a folder if it is empty, and then its parents as far as they are empty.

    Folders that another process has locked stay, and so does the current folder.

    Args:
        before: real paths of folders that existed before, and stay.
    """
    try:
        yield
    finally:
        for each in (folder, *folder.parents):
            if os.path.realpath(each) in before or each in (Path.cwd(), *Path.cwd().parents):
                break
            with suppress(OSError):
                _remove_unlocked(each)


def _remove_unlocked(folder: Path) -> None:
    """Remove a folder; OSError if it is not empty, or another process has locked it (`checkpoint.exclusive_lock`)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.rmdir()
    finally:
        os.close(handle)
