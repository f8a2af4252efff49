"""The gate for configurations that come with a checkpoint or a folder: what may be made of them, and what is opened.

Such a configuration is a stranger's. It may hold plain values alone (`plain_values`), and name classes that YAML files
of ditmoe and of installed packages name (`known_classes`). What it would open, a path or a name on the hub, is opened
only if the person's command allows it.
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
"""Sections that have options: whoever reads them takes them for dicts; a dense model's router may be null."""
Trust = bool | str | Sequence[str]
"""What the person's command allows: false nothing, true all that is named, or these paths and hub names alone."""


class Withheld(os.PathLike):
    """A path or hub name that a stranger's configuration would open: whoever opens it raises one line instead."""

    def __init__(self, value: str, option: str, file: Path) -> None:
        self.value, self.option, self.file = value, option, file

    def __fspath__(self) -> str:
        value = printable(self.value)
        raise ValueError(
            f"{self.file} wants to open {self.option} = {value!r}: if you know what that is, say trust=true, "
            f"or trust={value} to allow this alone"
        )

    def __repr__(self) -> str:
        return f"Withheld({self.value!r})"


def admit(config: Any, sections: Sequence[str], file: Path, trust: Trust = False) -> dict[str, Any]:
    """These sections of a configuration that came with `file`, fit to be made into objects; the others are left out.

    Paths and hub names that options of its classes would open (`opens`, a property of each class) become `Withheld`
    unless `trust` or ditmoe's own YAML files name them.

    Raises:
        ValueError: one line that names what is refused.
    """
    what = f"the configuration of {file}"
    check_plain(config, what)
    if type(config) is not dict:
        raise ValueError(f"{what} must be a dict, got {type(config).__name__}")
    if missing := [name for name in sections if name not in config]:
        raise ValueError(f"{what} lacks its section {missing[0]}")
    for name in sections:
        nothing = name == "router" and config[name] is None
        if name in NESTED and type(config[name]) is not dict and not nothing:
            raise ValueError(
                f"{what} must have options in its section {name}, got {type(config[name]).__name__}"
            )
    return {name: _admitted(config[name], name, file, trust) for name in sections}


def opened(config: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Options of a checked configuration that would open a path or a hub name, and what they would open."""
    for place, section in targets(config, name):
        for option in opens(section):
            if isinstance(value := value_at(section, option), str):
                yield f"{place}.{option}", value


def opens(section: Mapping[str, Any]) -> Sequence[str]:
    """Options of a section that open a path or a hub name, as the class that it names says."""
    return getattr(find(section["_target_"]), "opens", ()) if "_target_" in section else ()


def withheld(config: Any) -> Iterator[tuple[str, str]]:
    """Options of an admitted configuration that may not be opened, and what they would open."""
    return ((leaf.option, leaf.value) for _, leaf in leaves(config, "") if isinstance(leaf, Withheld))


def check_openable(config: Any) -> None:
    """Raises ValueError, saying how to allow it, if an admitted configuration holds what may not be opened."""
    for _, leaf in leaves(config, ""):
        if isinstance(leaf, Withheld):
            os.fspath(leaf)


def autoencoders(config: Mapping[str, Any]) -> Sequence[str]:
    """Classes of diffusers that may be the autoencoder of an admitted configuration's modality, if it has one."""
    section = config.get("modality") or {}
    return getattr(find(section["_target_"]), "autoencoders", ()) if "_target_" in section else ()


def class_at(config: Any, section: str, file: Path, trust: Trust = False) -> type:
    """The class that a section of a configuration which came with `file` names; of all else there nothing is read.

    Raises:
        ValueError: if it names none, or one that is not trusted.
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
                f"{file} wants {place} to be made before anybody asks, refused: it lacks _partial_"
            )
    kept, openable = copied(section), dict(opened(section, name))
    check_interpolations(section, name, file, openable)
    named = {trust} if isinstance(trust, str) else set() if isinstance(trust, bool) else set(map(str, trust))
    for place, text in strings(section, name):
        if (last_part(place), text) in shipped()[1]:
            continue
        if place not in openable and is_path(text):
            raise ValueError(
                f"{file} holds a path where none belongs, refused: {place} = {printable(text)!r}"
            )
        if place in openable and trust is not True and text not in named:
            put(kept, place.removeprefix(f"{name}."), Withheld(text, place, file))
    return kept


def is_path(text: str) -> bool:
    """Whether a string could lead to a file elsewhere, or to the hub."""
    return any(mark in text for mark in ("/", "\\", "\0", "..")) or text.startswith("~")
