"""Names, files and folders that strangers made: what may be printed, written and opened of them."""

import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

LARGEST_JSON = 100_000_000
"""Bytes of a file of JSON that says what something is; a manifest of a thousand files has a hundredth."""
LONGEST = 120
"""Bytes of a file name made of someone's name; file systems take 255 with what is added."""
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

    def shown(letter: str) -> str:
        if letter in keep or not _is_hidden(letter):
            return letter
        code = ord(letter)
        if 0xDC80 <= code <= 0xDCFF:  # a byte that Python could not decode
            code -= 0xDC00
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    text = str(text)
    return text if text.isascii() and text.isprintable() else "".join(map(shown, text))


def file_name(text: object) -> str:
    """A name, as of a class, as part of a file's name on any system: it leads nowhere, hides nothing, is not too long.

    What cannot stand becomes `_`; two names may become one, so a number must follow where files are not to meet.
    """
    name = "".join("_" if _is_hidden(c) else c for c in str(text))
    name = _UNSAFE.sub("_", name).strip(" ")
    name = re.sub(r"^\.+", lambda dots: "_" * len(dots[0]), name)
    name = name.encode()[:LONGEST].decode(errors="ignore").rstrip(" .")
    return name or "_"


def is_regular(path: Path) -> bool:
    """Whether a path, links followed, is a plain file: no folder, FIFO, device or socket."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def open_regular(path: Path) -> IO[bytes]:
    """Open a plain file for reading; nothing else is waited for.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is a FIFO, a device, a socket or a folder.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{printable(path)} must be a plain file: it is a folder, a pipe or a device")
    return os.fdopen(handle, "rb")


def read_json(path: Path) -> Any:
    """What a JSON file holds, of at most `LARGEST_JSON` bytes.

    Raises:
        OSError, ValueError: one line, if it cannot be opened, is too large, or is no JSON.
    """
    with open_regular(path) as stream:
        text = stream.read(LARGEST_JSON + 1)
    if len(text) > LARGEST_JSON:
        raise ValueError(f"{printable(path)} must be at most {LARGEST_JSON} bytes of JSON, it has more")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{printable(path)} is no JSON, or is damaged: {error}") from error


def files_below(top: Path, hidden: bool = False) -> Iterator[Path]:
    """Plain files below a folder, in order of their paths; links are followed, each real folder once.

    Args:
        hidden: also what begins with a dot.
    """
    return (path for path, plain in entries_below(top, hidden) if plain)


def entries_below(top: Path, hidden: bool = False) -> Iterator[tuple[Path, bool]]:
    """What lies below a folder but is none itself, in order, and whether it is a plain file; see `files_below`."""
    seen: set[tuple[int, int]] = set()

    def walk(folder: Path) -> Iterator[tuple[Path, bool]]:
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in seen:
            return
        seen.add((about.st_dev, about.st_ino))
        with os.scandir(folder) as entries:
            here = sorted(
                (entry for entry in entries if hidden or entry.name[0] != "."), key=lambda e: e.name
            )
        for entry in here:
            try:
                folder_too, plain = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                folder_too = plain = False
            if folder_too:
                yield from walk(Path(entry.path))
            else:
                yield Path(entry.path), plain

    yield from walk(Path(top))
