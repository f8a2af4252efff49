"""Untrusted names, files and folders: how to print, write and open them safely."""

import codecs
import errno
import functools
import io
import json
import os
import re
import stat
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LARGEST_JSON = 100_000_000
"""Largest JSON file in bytes; a manifest of a thousand files has a hundredth of that."""
DEEPEST_JSON = 100
"""Levels of what stands in one."""
LONGEST_NUMBER = 400
"""Digits of a whole number in JSON; the largest that a float can be has 309."""
LONGEST = 120
"""Bytes of a file name made from an untrusted name; with additions it must stay below the file systems' 255."""
FREE, GROWTH = 128 * 2**20, 100
"""A compressed file may become this many bytes in memory, or this many times its size (`may_hold`)."""
OWN_PICTURE = b"Software\0ditmoe"
"""In the first KiB of each PNG that ditmoe writes (`check_ours`)."""
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_UNSAFE = re.compile(r'[/\\<>:"|?*]')
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode categories that a terminal executes or hides: controls, directions, lone surrogates, line ends."""
_JOINERS = "\u200c\u200d"  # harmless, and needed in Persian words and emoji


def _is_hidden(letter: str) -> bool:
    return unicodedata.category(letter) in _HIDDEN and letter not in _JOINERS


def printable(text: object, keep: str = "") -> str:
    r"""Untrusted text on one line, safe for a terminal, a log or a page: controls become \x1b, \u202e, ...

    Letters of any script are kept; bytes in file names that are not UTF-8 are shown as \xe9.

    Args:
        keep: control characters to keep, such as line ends.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _is_hidden(c) else _escaped(c) for c in text)


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that Python could not decode
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def decoded(content: bytes, errors: str = "surrogateescape") -> str:
    """Decode UTF-8, or UTF-16 as Windows writes it, with or without a byte order mark.

    Args:
        errors: how to treat bytes that are not UTF-8; the default keeps them, as Python does in file names.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, errors if encoding == "utf-8" else "replace")
    if 0 in content[:2] and len(content) % 2 == 0:
        return content.decode("utf-16-be" if content[0] == 0 else "utf-16-le", "replace")
    return content.decode("utf-8", errors)


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path, of which a leading `~/` is the user's home folder; another name that starts with `~` is a name.

    `Path.expanduser` takes `~old` for the home of a user, and raises RuntimeError if there is none of that name.
    """
    text = os.fspath(path)
    return Path(os.path.expanduser(text) if text == "~" or text.startswith("~/") else text)


def real_path(path: str | os.PathLike[str]) -> Path:
    """An absolute path without links, as far as it exists; `Path.resolve` raises RuntimeError on a circle of links."""
    return Path(os.path.realpath(path))


def file_name(text: object, longest: int = LONGEST) -> str:
    """A name, such as of a class, as a safe part of a file name on any system: no path, no hidden characters.

    Invalid characters become `_`, and the result is cut to `longest` bytes. Different names may become equal; use
    `file_names` where files must differ.
    """
    name = "".join("_" if _is_hidden(c) else c for c in str(text))
    name = _UNSAFE.sub("_", name).strip(" ")
    name = re.sub(r"^\.+", lambda dots: "_" * len(dots[0]), name)
    name = name.encode()[:longest].decode(errors="ignore").rstrip(" .")
    return name or "_"


def file_names(names: Iterable[object], taken: Collection[str] = ()) -> list[str]:
    """Names as parts of file names that are distinct, also on file systems that ignore case.

    Args:
        taken: names that are already in use.
    """
    seen = {name.casefold() for name in taken}
    given: list[str] = []
    for name in names:
        first = safe = file_name(name, LONGEST + 40)  # leaves room for a number that follows a cut name
        number = 1
        while safe.casefold() in seen:
            number += 1
            safe = f"{first}-{number}"
        seen.add(safe.casefold())
        given.append(safe)
    return given


def tell(text: object, file: Any = None) -> None:
    """Print text that may be untrusted as one line on stderr, or another stream."""
    print(printable(text), file=file or sys.stderr)


def in_python(text: str) -> str:
    r"""A text as a Python literal on one line: control and hidden characters become \n, \u202e, ..."""
    return f'"{text}"' if text.isprintable() and not {'"', "\\"} & {*text} else repr(text)


def may_hold(stored: int) -> int:
    """Bytes of memory that a compressed file of `stored` bytes may need, to check before allocating.

    Data that compress better are legitimate but rare: raise `FREE` or `GROWTH`, or store them uncompressed.
    """
    return max(FREE, GROWTH * stored)


def is_regular(path: Path) -> bool:
    """Whether a path, with links followed, is a regular file: no folder, FIFO, device, socket or file of the kernel."""
    try:
        about = os.stat(path)
        return stat.S_ISREG(about.st_mode) and about.st_dev not in _of_the_kernel()
    except (OSError, ValueError):
        return False


@functools.cache
def _of_the_kernel() -> frozenset[int]:
    """Device numbers of /proc and /sys, whose files look regular, but have no true size, and may be endless."""
    found = set()
    for place in ("/proc", "/sys", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/fs/cgroup"):
        with suppress(OSError):
            if os.path.ismount(place):
                found.add(os.stat(place).st_dev)
    return frozenset(found)


class Plain(io.BufferedReader):
    """A regular file; reading allocates no more memory than the file has bytes, whatever size is requested."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 2**16:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def open_regular(path: Path, most: int | None = None) -> Plain:
    """Open a regular file for reading; anything else is rejected without opening or blocking.

    Args:
        most: largest size in bytes.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is a FIFO, a device, a socket or a folder, or too large, or almost all of it is holes.
    """
    about = os.stat(path)  # before opening, which acts on some devices
    if about.st_dev in _of_the_kernel():
        raise ValueError(f"{printable(path)} must be a file of data, got one of the kernel (/proc, /sys)")
    if holes := stat.S_ISREG(about.st_mode):
        # A file of size 0 is not opened: some files of /proc never end.
        place = path if about.st_size else os.devnull
        handle = os.open(place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        about = os.fstat(handle) if about.st_size else about
        holes = _is_hollow(handle, about)
        if stat.S_ISREG(about.st_mode) and not holes and (most is None or about.st_size <= most):
            return Plain(io.FileIO(path, "rb", opener=lambda *_: handle))  # has the file's name
        os.close(handle)
    if holes:
        raise ValueError(
            f"{printable(path)} must hold as much as its size states, got {about.st_size} bytes of mostly holes"
        )
    if stat.S_ISREG(about.st_mode):
        raise ValueError(f"{printable(path)} must have at most {most} bytes, got {about.st_size}")
    raise ValueError(f"{printable(path)} must be a plain file, got a folder, a pipe or a device")


def _is_hollow(handle: int, about: os.stat_result) -> bool:
    """Whether a large file is almost all holes; an archive of a few bytes can unpack to terabytes of them."""
    stored = 512 * getattr(about, "st_blocks", 0)
    if about.st_size <= may_hold(stored):
        return False
    if stored:
        return True
    try:  # some file systems do not report blocks
        os.lseek(handle, 0, os.SEEK_DATA)
    except (AttributeError, OSError) as error:
        return getattr(error, "errno", None) == errno.ENXIO
    os.lseek(handle, 0, os.SEEK_SET)
    return False


@contextmanager
def in_utf8(path: Path) -> Iterator[Path]:
    """A path in UTF-8 to the same file, for libraries that need one, even if its folder's name is not UTF-8.

    It leads through a handle of the folder in Linux's /proc; on other systems all names are Unicode.
    """
    handle = None
    try:
        str(path).encode()
    except UnicodeEncodeError:
        handle = os.open(path.parent, os.O_RDONLY)
        path = Path(f"/proc/self/fd/{handle}", path.name)
    try:
        yield path
    finally:
        if handle is not None:
            os.close(handle)


def check_ours(path: Path, kind: str, mark: bytes, remedy: str) -> None:
    """Raise ValueError if a file that is to be replaced, under a name that nobody gave, is somebody else's.

    Args:
        kind: what ditmoe writes there, for the error.
        mark: what stands in the first KiB of all that ditmoe writes there.
        remedy: what to do instead.
    """
    if is_regular(path):
        with open_regular(path) as stream:
            if mark not in stream.read(2**10):
                raise ValueError(f"{printable(path)} is no {kind} of ditmoe: {remedy}")


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a regular file; errors as in `open_regular`."""
    with open_regular(path, most) as stream:
        return stream.read()


def read_beside(path: Path, most: int) -> bytes:
    """The bytes of a text that describes the data beside it: captions, labels, names of classes.

    A link to one must not lead out of its folder, since text, unlike pictures and clouds, is taken as it is, whatever
    file it comes from. Caches of the hub are excepted, whose `snapshots` are links into the `blobs` beside them.

    Raises:
        ValueError: if it is a link elsewhere; other errors as in `open_regular`.
    """
    folder, file = real_path(path.parent), real_path(path)
    blobs = [each.parent / "blobs" for each in (folder, *folder.parents) if each.name == "snapshots"]
    if path.is_symlink() and not any(file.is_relative_to(place) for place in (folder, *blobs)):
        raise ValueError(
            f"{printable(path)} must be a file, got a link out of its folder, to {printable(file)}"
        )
    return read_regular(path, most)


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `json.loads(object_pairs_hook=)`.

    Raises:
        ValueError: if a name occurs twice, which programs resolve differently.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the name {printable(name)[:60]} twice")
    return found


def parse_json(text: str | bytes) -> Any:
    """What JSON of a stranger says, with each name of an object once and no number of thousands of digits.

    Raises:
        ValueError: if it is none, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=distinct, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:  # Python refuses those of 4,300, and names a setting of its own
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def read_json(path: Path) -> Any:
    """The content of a JSON file of at most `LARGEST_JSON` bytes.

    Raises:
        OSError, ValueError: one line, if it cannot be opened, is too large, too deep or not JSON, or repeats a name.
    """
    text = read_regular(path, LARGEST_JSON)
    try:
        content = parse_json(text)
        level = [content] if isinstance(content, dict | list) else []
        for _ in range(DEEPEST_JSON):  # copying and printing recurse, which Python limits
            level = [
                inner
                for outer in level
                for inner in (outer.values() if isinstance(outer, dict) else outer)
                if isinstance(inner, dict | list)
            ]
            if not level:
                return content
        raise RecursionError(f"it is nested more than {DEEPEST_JSON} levels deep")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{printable(path)} is no JSON, or is damaged: {error}") from error


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file; errors as in `read_json`, and ValueError if it is not an object."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{printable(file)} must hold a JSON object, got {type(content).__name__}")
    return content
