"""Atomic writing: files and folders are complete or absent, even if the process is killed.

Data are written to a draft beside the target, `.NAME.1a2b3c4d.ditmoe-draft`, which the writing process locks. The lock
ends with its process, on every machine or container that shares the file system, so an unlocked draft is abandoned and
can be removed.
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

from ditmoe.outside import is_regular, open_regular, printable

DAY = 24 * 60 * 60
DRAFT, OLD = "draft", "old"
_HIDDEN = re.compile(rf"\.(.+)\.[0-9a-f]{{8}}\.ditmoe-({DRAFT}|{OLD})", re.DOTALL)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file atomically: into a hidden draft beside it, which is renamed at the end.

    A crash, a kill or a full disk leaves an existing file unchanged. Missing folders are created. The first time that a
    process writes into a folder, it removes the drafts that killed processes left there.

    Raises:
        OSError: if it cannot be written; the error names the path.
        ValueError: if the path is, or links to, a folder, a device or a pipe: /dev/null would become a file.
    """
    if path.exists() and not is_regular(path):
        raise ValueError(
            f"{printable(path)} must be a plain file or not exist, got a folder, a pipe or a device"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _cleared(path.parent.absolute())
    begun: list[Path] = []
    try:
        draft, handle = _begun(path, _created, begun)
        # Readable, too: NumPy writes to write-only files through C's buffers, which hide that the disk is full.
        with open(draft, "w+b", opener=lambda *_: handle) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(draft, path)
    except BaseException as error:
        for each in begun:
            discard(each)
        _name(error, path)
        raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a folder atomically: yields a draft folder to fill, which is renamed at the end.

    An existing folder of that name, empty or not, stays until the new one replaces it. Files get the mode that the
    umask gives, and are flushed to disk before the rename. If `path` is a link, its target is replaced.

    Raises:
        OSError: if it cannot be written.
        ValueError: if it is or holds the current folder, which would be deleted.
    """
    path = Path(os.path.realpath(path))
    _check_elsewhere(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    clear(path.parent)
    begun: list[Path] = []
    handle = None
    try:
        draft, handle = _begun(path, _made, begun)
        yield draft
        mode = draft.stat().st_mode & 0o666
        for found in sorted(draft.rglob("*"), reverse=True):  # a folder after its content
            if found.is_file():
                found.chmod(mode)  # safetensors creates files that only their owner can read
            sync(found)
        sync(draft)
        _take(draft, path)
        sync(path.parent)
    except OSError as error:
        _name(error, path)
        raise
    finally:
        recover(path)
        for each in begun:
            discard(each)  # an unfinished draft, or the replaced folder
        if handle is not None:
            os.close(handle)
        clear(path.parent)


def _name(error: BaseException, path: Path) -> None:
    """Add the path to an OSError that has none, since it arose from writing to an open file."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        error.filename = str(path)


def _check_elsewhere(folder: Path) -> None:
    """Raises ValueError if a folder to be replaced is or holds the current one: who stands there would lose it."""
    with suppress(FileNotFoundError):  # the current folder is gone
        if Path(os.path.realpath(os.getcwd())).is_relative_to(folder):
            raise ValueError(
                f"{printable(folder)} must be another folder than the current one, which it would replace"
            )


def others_in(folder: Path, own: Callable[[str], object]) -> list[str]:
    """Printable paths of files in a folder, at any depth, that are not its command's own: replacing it would lose them.

    Links and empty folders count as files; OSError if a folder cannot be read.

    Args:
        own: whether the command writes a file of this path, relative to the folder.
    """
    found: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        names = files + [name for name in folders if os.path.islink(os.path.join(parent, name))]
        leaves = [os.path.join(parent, name) for name in names] or ([] if folders else [parent])
        found += (os.path.relpath(leaf, folder) for leaf in leaves)
    return [printable(path)[:60] for path in sorted(found) if not own(path)][:5]


def _raise(error: OSError) -> None:
    raise error


class _EnoughError(Exception):
    """Raised to discard the draft once writing has proved possible."""


def check_writable(path: Path, folder: bool = False) -> None:
    """Check before any work that a file or a folder can be written atomically; leaves nothing behind.

    Raises:
        OSError: if it cannot: no such folder, a name that is too long, a disk that is read-only or full.
        ValueError: if the path, or one of its parents, exists and is of another kind.
    """
    path = Path(os.path.realpath(path)) if folder else path
    if folder:
        _check_elsewhere(path)
    there = next((each for each in (path, *path.parents) if os.path.lexists(each)), Path())
    if not there.is_dir() and (there != path or folder):
        raise ValueError(f"{printable(there)} must be a folder or not exist, got something else")
    made = [each for each in path.parents if not os.path.lexists(each)]
    try:
        with suppress(_EnoughError), replacing_folder(path) if folder else replacing(path):
            raise _EnoughError
    finally:
        remove_empty(made)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn a `SafetensorError` while writing, such as a full disk, into an OSError."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{place} cannot be written: {error}") from error


def recover(path: Path) -> None:
    """Restore a folder that a process moved aside before it was killed. Call this before opening a folder.

    Only needed on file systems that cannot exchange two names.
    """
    if not os.path.lexists(path):
        old = [place for place, name, kind in _hidden(path.parent) if (name, kind) == (path.name, OLD)]
        for place in sorted(old, key=_changed, reverse=True):
            with suppress(OSError):  # another process restored it
                os.rename(place, path)
                return


def clear(folder: Path) -> None:
    """Remove what killed processes left in a folder; drafts of running processes stay."""
    for place, name, kind in _hidden(folder):
        if kind == DRAFT:
            _discard_unlocked(place)
        elif os.path.lexists(folder / name):  # checked after listing, so it is at least as new as the old one
            discard(place)


def remove(folder: Path) -> None:
    """Remove a folder atomically: a kill leaves an abandoned draft, not a partial folder."""
    if folder.exists():
        litter = _beside(folder, DRAFT)
        folder.rename(litter)
        discard(litter)


def discard(litter: Path) -> None:
    """Delete a file or a folder; errors are ignored."""
    with suppress(OSError):
        if litter.is_dir() and not litter.is_symlink():
            shutil.rmtree(litter, ignore_errors=True)
        else:
            litter.unlink()


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal; errors as in `ditmoe.outside.open_regular`."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders, innermost first, that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _take(draft: Path, path: Path) -> None:
    """Rename a complete draft folder. An existing folder gets the draft's name, or one that `recover` finds."""
    while True:
        try:
            os.rename(draft, path)  # if there is no folder of that name, or an empty one
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(FileNotFoundError):  # another process moved it away
            if _exchange(draft, path):
                return
            os.rename(path, _beside(path, OLD))


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names atomically with Linux's renameat2; False if the kernel or the file system cannot."""
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
    """The path of a draft (`DRAFT`) of a file or folder, or of the version moved aside (`OLD`); unique by its token."""
    return path.with_name(f".{path.name}.{token}.ditmoe-{kind}")


def _hidden(folder: Path) -> list[tuple[Path, str, str]]:
    """Drafts in a folder, and folders that were moved aside: path, target name and kind (`DRAFT` or `OLD`) of each."""
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


def _begun(path: Path, make: Callable[[Path], int], begun: list[Path]) -> tuple[Path, int]:
    """Create and lock a new draft of a path; returns its path and handle.

    Args:
        begun: gets the draft's path before it is created, since an interrupt may come before this returns.
    """
    while True:
        begun[:] = [draft := _beside(path, DRAFT)]
        try:
            handle = make(draft)
        except FileExistsError:
            begun.clear()  # it is another's
            continue
        except OSError as error:
            error.filename = str(path)  # the user knows the target, not the draft
            raise
        if lock(handle) is not False and draft.exists():  # no other process cleared it before it was locked
            return draft, handle
        os.close(handle)


def _created(draft: Path) -> int:
    return os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _made(draft: Path) -> int:
    draft.mkdir()
    return os.open(draft, os.O_RDONLY)


def lock(handle: int) -> bool | None:
    """Lock an open file until it is closed; returns whether that succeeded, or None on a file system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _discard_unlocked(draft: Path) -> None:
    """Discard a draft whose process has ended; on file systems without locks, one older than a day."""
    kind = os.O_RDONLY if draft.is_dir() else os.O_RDWR  # NFS locks only files opened for writing
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
