"""Folders that Hydra makes for a command before anything is known to be right; of a refused one none stays."""

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def empty_folders(folder: Path, levels: int = 3) -> frozenset[str]:
    """Real paths of the empty folders among a folder and what is below it, so many levels deep."""
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
    """Behind it a folder is gone if nothing was written into it, and so are the folders that it alone was in.

    What another process has to itself stays, and the current folder.

    Args:
        before: real paths of folders that were there, and stay.
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
    """Raises OSError if it is not empty, or another process has locked it (`checkpoint.exclusive_lock`)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.rmdir()
    finally:
        os.close(handle)
