"""Names, files and folders that strangers made: what may be printed, written and opened of them."""

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
"""Bytes of a file of JSON that says what something is; a manifest of a thousand files has a hundredth."""
DEEPEST_JSON = 100
"""Levels of what stands in one."""
LONGEST_NUMBER = 400
"""Digits of a whole number in JSON; the largest that a float can be has 309."""
LONGEST = 120
"""Bytes of a file name made of someone's name; file systems take 255 with what is added."""
FREE, GROWTH = 128 * 2**20, 100
"""What a compressed file may become in memory: so many bytes, or so many times its own (`may_hold`)."""
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_UNSAFE = re.compile(r'[/\\<>:"|?*]')
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode categories that a screen obeys or hides: controls, directions, lone surrogates, line ends."""
_JOINERS = "\u200c\u200d"  # they hide nothing, and Persian or an emoji is another word without


def _is_hidden(letter: str) -> bool:
    return unicodedata.category(letter) in _HIDDEN and letter not in _JOINERS


def printable(text: object, keep: str = "") -> str:
    r"""Text of a stranger on one line, as it may reach a terminal, a log or a page: controls become \x1b, \u202e, ...

    Ordinary letters of any script stay; names of files that are not UTF-8 show their bytes as \xe9.

    Args:
        keep: controls that stay, such as the ends of lines.
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
    """Text in UTF-8, or UTF-16 as Windows writes it, with or without a mark.

    Args:
        errors: what becomes of bytes that are no UTF-8; the default keeps them, as Python does in names of files.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, errors if encoding == "utf-8" else "replace")
    if 0 in content[:2]:
        return content.decode("utf-16-be" if content[0] == 0 else "utf-16-le", "replace")
    return content.decode("utf-8", errors)


def file_name(text: object, longest: int = LONGEST) -> str:
    """A name, as of a class, as part of a file's name on any system: it leads nowhere, hides nothing, is not too long.

    What cannot stand becomes `_`, and the end is cut off behind `longest` bytes; two names may become one, so a number
    must follow where files are not to meet (`file_names`).
    """
    name = "".join("_" if _is_hidden(c) else c for c in str(text))
    name = _UNSAFE.sub("_", name).strip(" ")
    name = re.sub(r"^\.+", lambda dots: "_" * len(dots[0]), name)
    name = name.encode()[:longest].decode(errors="ignore").rstrip(" .")
    return name or "_"


def file_names(names: Iterable[object], taken: Collection[str] = ()) -> list[str]:
    """Names as parts of file names that differ from each other, also where capitals are small letters.

    Args:
        taken: further names that none of them may have.
    """
    seen = {name.casefold() for name in taken}
    given: list[str] = []
    for name in names:
        first = safe = file_name(name, LONGEST + 40)  # with the number of one that was cut
        number = 1
        while safe.casefold() in seen:
            number += 1
            safe = f"{first}-{number}"
        seen.add(safe.casefold())
        given.append(safe)
    return given


def tell(text: object, file: Any = None) -> None:
    """Print what holds a stranger's words on stderr, or another stream, as one line."""
    print(printable(text), file=file or sys.stderr)


def in_python(text: str) -> str:
    r"""A text as it is typed in Python, on one line: what a screen would obey or hide is \n, \u202e, ..."""
    return f'"{text}"' if text.isprintable() and not {'"', "\\"} & {*text} else repr(text)


def may_hold(stored: int) -> int:
    """Bytes in memory that a compressed file of so many bytes may ask for, before any are taken.

    Data that are smaller still when compressed are honest but rare: raise `FREE` or `GROWTH`, or store them plainly.
    """
    return max(FREE, GROWTH * stored)


def is_regular(path: Path) -> bool:
    """Whether a path, links followed, is a plain file: no folder, FIFO, device or socket."""
    try:
        about = os.stat(path)
        return stat.S_ISREG(about.st_mode) and about.st_dev not in _of_the_kernel()
    except (OSError, ValueError):
        return False


@functools.cache
def _of_the_kernel() -> frozenset[int]:
    """Devices of /proc and /sys: their files say that they are plain, have no true size, and some never end."""
    found = set()
    for place in ("/proc", "/sys", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/fs/cgroup"):
        with suppress(OSError):
            if os.path.ismount(place):
                found.add(os.stat(place).st_dev)
    return frozenset(found)


class Plain(io.BufferedReader):
    """A plain file whose reader is never given memory for more than the file has, whatever it asks for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 2**16:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def open_regular(path: Path, most: int | None = None) -> Plain:
    """Open a plain file for reading; nothing else is opened or waited for.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is a FIFO, a device, a socket or a folder, or larger, or its size is all but holes.
    """
    about = os.stat(path)  # before it is opened, which some devices take for an order
    if about.st_dev in _of_the_kernel():
        raise ValueError(f"{printable(path)} must be a file of someone's data: it is one of the kernel's")
    if holes := stat.S_ISREG(about.st_mode):
        # What says that it is empty is not asked: some files of /proc are never at an end.
        place = path if about.st_size else os.devnull
        handle = os.open(place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        about = os.fstat(handle) if about.st_size else about
        holes = _is_hollow(handle, about)
        if stat.S_ISREG(about.st_mode) and not holes and (most is None or about.st_size <= most):
            return Plain(io.FileIO(path, "rb", opener=lambda *_: handle))  # which knows its name
        os.close(handle)
    if holes:
        raise ValueError(
            f"{printable(path)} must hold what its size promises: {about.st_size} bytes are all but holes"
        )
    if stat.S_ISREG(about.st_mode):
        raise ValueError(f"{printable(path)} must have at most {most} bytes, got {about.st_size}")
    raise ValueError(f"{printable(path)} must be a plain file: it is a folder, a pipe or a device")


def _is_hollow(handle: int, about: os.stat_result) -> bool:
    """Whether a large file was hardly written: a few bytes of an archive become terabytes of holes so."""
    stored = 512 * getattr(about, "st_blocks", 0)
    if about.st_size <= may_hold(stored):
        return False
    if stored:
        return True
    try:  # some file systems count no blocks
        os.lseek(handle, 0, os.SEEK_DATA)
    except (AttributeError, OSError) as error:
        return getattr(error, "errno", None) == errno.ENXIO
    os.lseek(handle, 0, os.SEEK_SET)
    return False


@contextmanager
def in_utf8(path: Path) -> Iterator[Path]:
    """The same file by a path in UTF-8, to which some libraries keep, whatever its folder's name is.

    That is by a handle on the folder, as Linux has it; elsewhere there are no other names.
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


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a plain file; errors as of `open_regular`."""
    with open_regular(path, most) as stream:
        return stream.read()


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON for `json.loads(object_pairs_hook=)`.

    Raises:
        ValueError: if a name stands in it twice, of which each program takes another one.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it says {printable(name)[:60]} twice")
    return found


def parse_json(text: str | bytes) -> Any:
    """What JSON of a stranger says, with each name of an object once and no number of thousands of digits.

    Raises:
        ValueError, RecursionError: if it is none.
    """
    return json.loads(text, object_pairs_hook=distinct, parse_int=_whole)


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:  # Python refuses those of 4,300, and names a setting of its own
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def read_json(path: Path) -> Any:
    """What a JSON file holds, of at most `LARGEST_JSON` bytes.

    Raises:
        OSError, ValueError: one line, if it cannot be opened, is too large, is no JSON, or says something twice.
    """
    text = read_regular(path, LARGEST_JSON)
    try:
        content = parse_json(text)
        level = [content] if isinstance(content, dict | list) else []
        for _ in range(DEEPEST_JSON):  # whoever copies or prints it goes down by calls, which soon end
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
    """What a JSON file holds; errors as of `read_json`, and ValueError unless that is an object."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{printable(file)} must hold a JSON object, got {type(content).__name__}")
    return content
