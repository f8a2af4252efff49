"""Being the only process that writes somewhere: who comes second is told so, and changes nothing."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ditmoe.checkpoint.atomic import DRAFT, discard, hidden_name, lock, remove_empty
from ditmoe.outside import printable


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a folder, which is made, and goes again if nothing is written.

    Raises:
        ValueError: if another process has it. Where nothing can be locked, nobody is kept away.
    """
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    handle = _alone(folder, folder, os.O_RDONLY)
    try:
        yield
    finally:
        remove_empty(made)  # while nobody else has it
        if handle is not None:
            os.close(handle)


@contextmanager
def alone_at(file: Path) -> Iterator[None]:
    """Be the only process that writes a file, and what lies beside it under its name: a draft says so meanwhile.

    Raises:
        ValueError: as `alone_in`.
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
    """A handle on a folder or file, which is made, and locked; None if that cannot be: whoever writes will tell.

    Raises:
        ValueError: if another process has the lock.
    """
    for wait in (*[0.1] * 20, None):  # workers of one that was just killed take a moment to end
        try:
            (place.parent if flags & os.O_CREAT else place).mkdir(parents=True, exist_ok=True)
            handle = os.open(place, flags, 0o666)
        except OSError:
            return None
        if lock(handle) is not False and _is_at(handle, place):  # nobody took it away between the two
            return handle
        os.close(handle)
        if wait is not None:
            time.sleep(wait)
    raise ValueError(f"another process is writing {printable(told)}: wait for it, or take another out=")


def _is_at(handle: int, place: Path) -> bool:
    """Whether a place is still what was opened there."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(place))
    except OSError:
        return False
