"""Exclusive locks on output folders and files: a second process fails with one line and changes nothing."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ditmoe.checkpoint.atomic import DRAFT, discard, hidden_name, lock, remove_empty
from ditmoe.outside import printable


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder for writing. It is created if missing, and removed at the end if nothing was written.

    Without effect on file systems that have no locks.

    Raises:
        ValueError: if another process holds the lock.
    """
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    handle = _alone(folder, folder, os.O_RDONLY)
    try:
        yield
    finally:
        remove_empty(made)  # before the lock is released
        if handle is not None:
            os.close(handle)


@contextmanager
def alone_at(file: Path) -> Iterator[None]:
    """Lock a file, and the files beside it that derive from its name, for writing, by a hidden draft file.

    Raises:
        ValueError: if another process holds the lock.
    """
    made = [each for each in file.parents if not os.path.lexists(each)]
    mark = hidden_name(file, DRAFT, "00000000")
    handle = _alone(mark, file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield
    finally:
        if handle is not None:
            discard(mark)
            os.close(handle)
        remove_empty(made)


def _alone(place: Path, told: Path, flags: int) -> int | None:
    """Create and lock a folder or file, and return its handle.

    Returns None if it cannot be created, since writing will then report the error.

    Args:
        told: the path to name in the error.

    Raises:
        ValueError: if another process holds the lock.
    """
    for wait in (*[0.1] * 20, None):  # the workers of a process that was just killed take a moment to end
        try:
            (place.parent if flags & os.O_CREAT else place).mkdir(parents=True, exist_ok=True)
            handle = os.open(place, flags, 0o666)
        except OSError:
            return None
        if lock(handle) is not False and _is_at(handle, place):  # not removed between opening and locking
            return handle
        os.close(handle)
        if wait is not None:
            time.sleep(wait)
    raise ValueError(f"another process is writing {printable(told)}: wait for it, or choose another out=")


def _is_at(handle: int, place: Path) -> bool:
    """Whether a path still leads to the opened file or folder."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(place))
    except OSError:
        return False
