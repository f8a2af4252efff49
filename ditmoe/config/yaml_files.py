"""YAML files that come from outside: plain, small, and of no more values than they show, before Hydra reads them."""

import re
from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from ditmoe.config import interpolations
from ditmoe.outside import printable, read_regular

LARGEST = 2**17
"""Bytes of a file."""
MOST, DEEPEST = 100_000, 32
"""Values of a file, each alias counted as all that it stands for, and levels."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FOLDERS = ("--config-dir", "-cd", "--config-path", "-cp")


def check_told(arguments: Sequence[str]) -> None:
    """Check the YAML files of the folders that a command line names.

    Raises:
        OSError, ValueError: one line, for the first that is not read.
    """
    words = [*arguments, ""]
    for word, following in pairwise(words):
        name, equals, value = word.partition("=")
        if name in _FOLDERS:
            folder, contents = Path(value if equals else following), []
            for file in sorted(folder.rglob("*.yaml")):
                content = check(file)
                _check_own(file, content.decode())
                contents.append(yaml.load(content, _LOADER))
            try:
                interpolations.check(contents, MOST)
            except ValueError as error:
                raise ValueError(
                    f"the YAML of {printable(folder)} is not read: {printable(error)}"
                ) from error


def _check_own(file: Path, content: str) -> None:
    """Raise ValueError for a file that changes Hydra itself, such as the folder of a run: only the command line may."""
    section = yaml.load(content, _LOADER)
    names = [str(key) for key in section] if isinstance(section, dict) else []
    if isinstance(section, dict) and isinstance(section.get("defaults"), list):
        names += [
            name for each in section["defaults"] for name in (each if isinstance(each, dict) else [str(each)])
        ]
    names += re.findall(r"^\s*#\s*@package(.*)", content, re.MULTILINE)
    if any(re.search(r"(?<![\w-])hydra\b", str(name)) for name in names):
        raise ValueError(
            f"{printable(file)} must not set hydra: say hydra.run.dir=... and the like on the command line"
        )


def read(file: Path) -> Any:
    """What a YAML file holds; errors as of `check`."""
    return yaml.load(check(file), _LOADER)


def check(file: Path) -> bytes:
    """The bytes of a YAML file that can be read.

    Raises:
        OSError, ValueError: one line, for what is no plain file or no YAML, too large, too deep, or of aliases of
            aliases, which stand for any number of values.
    """
    content = read_regular(file, LARGEST)
    if (why := _no_utf8(content)) is not None:  # which PyYAML reads, and Hydra does not
        raise ValueError(f"{printable(file)} is no YAML that is read: it must be UTF-8, {why}")
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # anchors, and the values in what they name so far
    try:
        for event in yaml.parse(content, _LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, 1))
            elif isinstance(event, yaml.ScalarEvent | yaml.AliasEvent | yaml.CollectionEndEvent):
                size = 1
                if isinstance(event, yaml.CollectionEndEvent):
                    anchor, size = open_nodes.pop()
                elif isinstance(event, yaml.AliasEvent):
                    anchor, size = None, sizes.get(event.anchor or "", MOST)  # of itself there is no end
                else:
                    anchor = event.anchor
                if anchor is not None:
                    sizes[anchor] = size
                open_nodes[-1] = open_nodes[-1][0], open_nodes[-1][1] + size
            if len(open_nodes) > DEEPEST or open_nodes[-1][1] >= MOST:
                raise ValueError("it is nested too deeply, or holds too much")
        _check_plain(yaml.load(content, _LOADER))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{printable(file)} is no YAML that is read: {printable(reason)}") from error
    return content


def _no_utf8(content: bytes) -> str | None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return f"got the byte {content[error.start]:#04x} at {error.start}"
    return None


def _check_plain(value: Any) -> None:
    """Raises ValueError for sets, bytes, dates and keys that are no names, which Hydra fails by without a word."""
    if isinstance(value, set | bytes | tuple | date):
        raise ValueError(f"it must hold texts, numbers, lists and sections, got {type(value).__name__}")
    for key in value if isinstance(value, dict) else ():
        if not isinstance(key, str | int | float):
            raise ValueError(f"its keys must be names, got {key}")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_plain(inner)
