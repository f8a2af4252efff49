"""Files and folders that are whole or not there, whoever is killed in between.

What is being written lies beside its name as `.NAME.1a2b3c4d.ditmoe-draft`, locked by whoever writes it. The lock dies
with its process, on any machine or container that shares the file system, so that a draft without one is litter.
"""

import ctypes
import errno
import fcntl
import functools
import hashlib
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from ditmoe.outside import is_regular, printable

DAY = 24 * 60 * 60
DRAFT, OLD = "draft", "old"
_HIDDEN = re.compile(rf"\.(.+)\.[0-9a-f]{{8}}\.ditmoe-({DRAFT}|{OLD})", re.DOTALL)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all: into a hidden neighbour, which takes the name at the end.

    A crash, a kill or a full disk leaves the old file as it was. Folders are made. The first file that a process writes
    into a folder clears it of what killed ones left.

    Raises:
        OSError: if it cannot be written; it has the name.
        ValueError: if the name is that of a folder, a device or a pipe, or leads to one: /dev/null would become a file.
    """
    if path.exists() and not is_regular(path):
        raise ValueError(
            f"{printable(path)} must be a plain file, or not be there: it is a folder, a pipe or a device"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _cleared(path.parent.absolute())
    draft, handle = _begun(path, lambda name: os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        # To read, too: to what can only be written NumPy writes by C's buffers, which hide that the disk is full.
        with open(draft, "w+b", opener=lambda *_: handle) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(draft, path)
    except BaseException as error:
        discard(draft)
        _name(error, path)
        raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a folder whole or not at all: fill the one that this gives, which takes the name at the end.

    An older folder of that name, empty or not, is there until the new one is, and is then removed. Files get the mode
    that the umask gives, and are on the disk before the name is taken. A link keeps pointing where it did.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    clear(path.parent)
    draft, handle = _begun(path, _made)
    try:
        yield draft
        mode = draft.stat().st_mode & 0o666
        for found in sorted(draft.rglob("*"), reverse=True):  # names in a folder after what they name
            if found.is_file():
                found.chmod(mode)  # safetensors' files are for their owner alone
            sync(found)
        sync(draft)
        _take(draft, path)
        sync(path.parent)
    except OSError as error:
        _name(error, path)
        raise
    finally:
        recover(path)
        discard(draft)  # what was not finished, or the old folder
        os.close(handle)
        clear(path.parent)


def _name(error: BaseException, path: Path) -> None:
    """Tell an error of what was being written, which whoever wrote into an open file did not know."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        error.filename = str(path)


class _EnoughError(Exception):
    """It could have been written."""


def check_writable(path: Path, folder: bool = False) -> None:
    """Find out before the work, not after it, whether a file or a folder can be written whole; nothing stays of that.

    Raises:
        OSError: if not: no such place, a name that is too long, a disk that is read-only or full.
        ValueError: if the name is that of something else.
    """
    path = Path(os.path.realpath(path)) if folder else path
    there = next((each for each in (path, *path.parents) if os.path.lexists(each)), Path())
    if not there.is_dir() and (there != path or folder):
        raise ValueError(f"{printable(there)} must be a folder, or not be there: it is something else")
    made = [each for each in path.parents if not os.path.lexists(each)]
    try:
        with suppress(_EnoughError), replacing_folder(path) if folder else replacing(path):
            raise _EnoughError
    finally:
        remove_empty(made)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Write safetensors: that the disk is full is an OSError, not one of theirs."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{place} cannot be written: {error}") from error


def recover(path: Path) -> None:
    """Put a folder back that was moved away by a writer who was then killed. Whoever opens one asks this first.

    That happens only on file systems that cannot exchange two names.
    """
    if not os.path.lexists(path):
        old = [place for place, name, kind in _hidden(path.parent) if (name, kind) == (path.name, OLD)]
        for place in sorted(old, key=_changed, reverse=True):
            with suppress(OSError):  # another process did
                os.rename(place, path)
                return


def clear(folder: Path) -> None:
    """Remove what killed processes left in a folder; what living ones are writing stays."""
    for place, name, kind in _hidden(folder):
        if kind == DRAFT:
            _discard_unlocked(place)
        elif os.path.lexists(folder / name):  # looked at after the list was made: one of its time or later
            discard(place)


def remove(folder: Path) -> None:
    """Take a folder away at once: whoever is killed in between leaves litter, not half a folder."""
    if folder.exists():
        litter = _beside(folder, DRAFT)
        folder.rename(litter)
        discard(litter)


def discard(litter: Path) -> None:
    """Take away what nobody needs, as far as it can be."""
    with suppress(OSError):
        if litter.is_dir() and not litter.is_symlink():
            shutil.rmtree(litter, ignore_errors=True)
        else:
            litter.unlink()


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file or the names in a folder on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_empty(folders: Iterable[Path]) -> None:
    """Take folders away, the innermost first, as far as there is nothing in them."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _take(draft: Path, path: Path) -> None:
    """Give a whole folder its name. What had it is then under the draft's name, or under one that `recover` knows."""
    while True:
        try:
            os.rename(draft, path)  # no folder has the name, or an empty one
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(FileNotFoundError):  # another process moved it away
            if _exchange(draft, path):
                return
            os.rename(path, _beside(path, OLD))


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names at once, by Linux's renameat2; False where the kernel or the file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    sys.audit("os.rename", str(a), str(b), -1, -1)  # as os.rename does
    here, rename_exchange = -100, 2
    if call(here, os.fsencode(a), here, os.fsencode(b), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(a), None, str(b))


def _beside(path: Path, kind: str) -> Path:
    return hidden_name(path, kind, secrets.token_hex(4))


def hidden_name(path: Path, kind: str, token: str) -> Path:
    """Beside a path: where what is written of it lies, or what it was; one of each token."""
    return path.with_name(f".{path.name}.{token}.ditmoe-{kind}")


def _hidden(folder: Path) -> list[tuple[Path, str, str]]:
    """Drafts and folders that were moved away: where they are, of which name, and which of both."""
    try:
        matches = [match for match in map(_HIDDEN.fullmatch, os.listdir(folder)) if match]
    except OSError:
        return []
    return [(folder / match[0], match[1], match[2]) for match in matches]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_ctime_ns
    except OSError:
        return 0


def _begun(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """A new draft of a path, locked, and a handle on it."""
    while True:
        draft = _beside(path, DRAFT)
        try:
            handle = make(draft)
        except FileExistsError:
            continue
        except OSError as error:
            error.filename = str(path)  # which a person knows
            raise
        if lock(handle) is not False and draft.exists():  # nobody took it for litter between the two
            return draft, handle
        os.close(handle)


def _made(draft: Path) -> int:
    draft.mkdir()
    return os.open(draft, os.O_RDONLY)


def lock(handle: int) -> bool | None:
    """Lock until it is closed: whether that could be; None on a file system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _discard_unlocked(draft: Path) -> None:
    """Discard a draft whose writer is dead; without locks that is one of a day ago."""
    kind = os.O_RDONLY if draft.is_dir() else os.O_RDWR  # NFS locks what may be written
    try:
        handle = os.open(draft, kind | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        locked = lock(handle)
        if locked or (locked is None and os.fstat(handle).st_mtime < time.time() - DAY):
            discard(draft)
    finally:
        os.close(handle)


@functools.cache
def _cleared(folder: Path) -> None:
    clear(folder)
