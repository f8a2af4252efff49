"""Walks through nested dicts and lists; entries are named by dotted paths."""

from collections.abc import Iterator, Mapping
from typing import Any


def targets(value: Any, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The path of every dict with a `_target_`, and the dict."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield name, value
        for key, inner in value.items():
            yield from targets(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from targets(inner, f"{name}.{index}")


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The path of every value that is not a dict or a list, and the value."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def strings(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """The path of every string, and the string."""
    return ((place, leaf) for place, leaf in leaves(value, name) if isinstance(leaf, str))


def last_part(dotted: str) -> str:
    """The name of an option without its sections."""
    return dotted.rpartition(".")[2]


def value_at(section: Any, dotted: str) -> Any:
    """The value at a path through dicts; None if there is none."""
    for key in dotted.split("."):
        section = section.get(key) if isinstance(section, dict) else None
    return section


def put(section: Any, dotted: str, value: Any) -> None:
    """Set the value at a path, if the path exists."""
    *outer, last = dotted.split(".")
    for key in outer:
        section = section[int(key)] if isinstance(section, list) else section.get(key)
        if section is None:
            return
    if last in section:
        section[last] = value


def copied(value: Any) -> Any:
    """A copy of nested dicts and lists; other values are shared."""
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list) else value
