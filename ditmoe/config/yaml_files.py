"""YAML files that come from outside: plain, small, and of no more values than they show, before Hydra reads them."""

from datetime import date
from pathlib import Path
from typing import Any

import yaml

from ditmoe.outside import printable, read_regular

LARGEST = 2**17
"""Bytes of a file."""
MOST, DEEPEST = 100_000, 32
"""Values of a file, each alias counted as all that it stands for, and levels."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
        reason = " ".join(str(error).split()).partition("; use sys.")[0][:200]
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
