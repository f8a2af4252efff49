"""Checks YAML files from outside before Hydra reads them: small, of plain values, and without exploding aliases."""

from datetime import date
from pathlib import Path
from typing import Any

import yaml

from ditmoe.outside import printable, read_regular

LARGEST = 2**17
"""Largest file in bytes."""
MOST, DEEPEST = 100_000, 32
"""Most values of a file, with aliases expanded, and most nesting levels."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(file: Path) -> Any:
    """The content of a YAML file; errors as in `check`."""
    return yaml.load(check(file), _LOADER)


def check(file: Path) -> bytes:
    """Check a YAML file, and return its bytes.

    Raises:
        OSError, ValueError: one line, if it is not a regular file, not YAML, too large, too deep, or has nested
            aliases that expand to too many values.
    """
    content = read_regular(file, LARGEST)
    if (why := _no_utf8(content)) is not None:  # PyYAML reads other encodings, but Hydra does not
        raise ValueError(f"{printable(file)} is no YAML that is read: it must be UTF-8, {why}")
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # anchor and number of values of each
    try:
        for event in yaml.parse(content, _LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, 1))
            elif isinstance(event, yaml.ScalarEvent | yaml.AliasEvent | yaml.CollectionEndEvent):
                size = 1
                if isinstance(event, yaml.CollectionEndEvent):
                    anchor, size = open_nodes.pop()
                elif isinstance(event, yaml.AliasEvent):
                    anchor, size = None, sizes.get(event.anchor or "", MOST)  # MOST: within its own node
                else:
                    anchor = event.anchor
                if anchor is not None:
                    sizes[anchor] = size
                open_nodes[-1] = open_nodes[-1][0], open_nodes[-1][1] + size
            if len(open_nodes) > DEEPEST or open_nodes[-1][1] >= MOST:
                raise ValueError("it is nested too deeply, or holds too many values")
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
    """Raises ValueError for sets, bytes, dates and invalid keys, on which Hydra fails without a message."""
    if isinstance(value, set | bytes | tuple | date):
        raise ValueError(f"it must hold strings, numbers, lists and sections, got {type(value).__name__}")
    for key in value if isinstance(value, dict) else ():
        if not isinstance(key, str | int | float):
            raise ValueError(f"its keys must be names, got {key}")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_plain(inner)
