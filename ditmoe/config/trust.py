"""Checks configurations that come with a checkpoint or a folder: what they may build and open.

Such a configuration is untrusted. It may hold only plain values (`plain_values`), and name only classes that occur in
YAML files of ditmoe and of installed packages (`known_classes`). A path or a hub name in it is opened only if the
user's command allows it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ditmoe.config.known_classes import find, is_allowed, shipped
from ditmoe.config.nested import copied, last_part, leaves, put, strings, targets, value_at
from ditmoe.config.plain_values import check_interpolations, check_plain, check_values
from ditmoe.outside import printable

NESTED = frozenset((
    "modality", "model", "router", "conditioning", "process", "objective", "scheduler", "sampling", "optimizer",
    "parameters", "mesh", "trainer", "finish", "lora", "upcycle",
))  # fmt: skip
"""Sections that must be dicts of options, as their readers assume; a dense model's router may be null."""
Trust = bool | str | Sequence[str]
"""What the user's command allows to be opened: nothing (False), everything (True), or these paths and hub names."""


class Withheld(os.PathLike):
    """A path or hub name of an untrusted configuration that may not be opened; using it as a path raises ValueError."""

    def __init__(self, value: str, option: str, file: Path) -> None:
        self.value, self.option, self.file = value, option, file

    def __fspath__(self) -> str:
        value = printable(self.value)
        raise ValueError(
            f"{self.file} wants to open {self.option} = {value!r}: to allow it, say trust={value}, or trust=true "
            "to allow everything"
        )

    def __repr__(self) -> str:
        return f"Withheld({self.value!r})"


def admit(config: Any, sections: Sequence[str], file: Path, trust: Trust = False) -> dict[str, Any]:
    """Check these sections of a configuration that came with `file`, and return them; others are omitted.

    Paths and hub names in options that open something (`opens` of each class) become `Withheld`, unless `trust` or
    a YAML file of ditmoe or an installed package names them.

    Raises:
        ValueError: one line that names what is refused.
    """
    what = f"the configuration of {file}"
    check_plain(config, what)
    if type(config) is not dict:
        raise ValueError(f"{what} must be a dict, got {type(config).__name__}")
    if missing := [name for name in sections if name not in config]:
        raise ValueError(f"{what} lacks the section {missing[0]}")
    for name in sections:
        nothing = name == "router" and config[name] is None
        if name in NESTED and type(config[name]) is not dict and not nothing:
            kind = "null" if config[name] is None else type(config[name]).__name__
            raise ValueError(f"{what} must have options in its section {name}, got {kind}")
    return {name: _admitted(config[name], name, file, trust) for name in sections}


def opened(config: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Options of a checked configuration that would open a path or a hub name, with that path or name."""
    for place, section in targets(config, name):
        for option in opens(section):
            if isinstance(value := value_at(section, option), str):
                yield f"{place}.{option}", value


def opens(section: Mapping[str, Any]) -> Sequence[str]:
    """Options of a section that open a path or a hub name, as declared by its class."""
    return getattr(find(section["_target_"]), "opens", ()) if "_target_" in section else ()


def withheld(config: Any) -> Iterator[tuple[str, str]]:
    """Options of an admitted configuration that may not be opened, with their path or hub name."""
    return ((leaf.option, leaf.value) for _, leaf in leaves(config, "") if isinstance(leaf, Withheld))


def check_openable(config: Any) -> None:
    """Raises ValueError, saying how to allow it, if an admitted configuration holds a withheld path or hub name."""
    for _, leaf in leaves(config, ""):
        if isinstance(leaf, Withheld):
            os.fspath(leaf)


def autoencoders(config: Mapping[str, Any]) -> Sequence[str]:
    """Autoencoder classes of diffusers that the modality of an admitted configuration accepts."""
    section = config.get("modality") or {}
    return getattr(find(section["_target_"]), "autoencoders", ()) if "_target_" in section else ()


def class_at(config: Any, section: str, file: Path, trust: Trust = False) -> type:
    """The class that a section names in a configuration that came with `file`; nothing else of it is read.

    Raises:
        ValueError: if it names no class, or one that is not trusted.
    """
    inner = config.get(section) if isinstance(config, dict) else None
    target = inner.get("_target_") if isinstance(inner, dict) else None
    if not is_allowed(target, None if trust is True else section):
        raise ValueError(
            f"{file} names a class that is not trusted, refused: {section}._target_ = {printable(repr(target))}"
        )
    return find(target)


def _admitted(section: Any, name: str, file: Path, trust: Trust) -> Any:
    check_values(section, name, file)
    for place, inner in targets(section, name):
        target = inner["_target_"]
        if not is_allowed(target, None if trust is True else place):
            raise ValueError(
                f"{file} names a class that is not trusted, refused: {place}._target_ = {target!r}"
            )
        if place != name and inner.get("_partial_") is not True:
            raise ValueError(
                f"{file} wants to build {place} at once, refused: a nested section must have _partial_: true"
            )
    kept, openable = copied(section), dict(opened(section, name))
    check_interpolations(section, name, file, openable)
    named = {trust} if isinstance(trust, str) else set() if isinstance(trust, bool) else set(map(str, trust))
    for place, text in strings(section, name):
        if (last_part(place), text) in shipped()[1]:
            continue
        if place not in openable and is_path(text):
            raise ValueError(
                f"{file} holds a path in an option that is not for paths, refused: {place} = {printable(text)!r}"
            )
        if place in openable and trust is not True and text not in named:
            put(kept, place.removeprefix(f"{name}."), Withheld(text, place, file))
    return kept


def is_path(text: str) -> bool:
    """Whether a string could be a path out of the current folder, or a hub name."""
    return any(mark in text for mark in ("/", "\\", "\0", "..")) or text.startswith("~")
