"""The gate for configurations that come with a checkpoint or a folder: what may be made of them, and what is opened.

Such a configuration is a stranger's. It may hold plain values alone, name classes that ditmoe's own YAML files name and
those of packages that the person installed (`ditmoe.config.folders`; and schedulers of diffusers, optimisers of torch),
and no number larger than what a machine can hold. What it would open, a path or a name on the hub, is opened only if
the person's command allows it.
"""

import importlib
import inspect
import math
import os
import pkgutil
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ditmoe.config import yaml_files
from ditmoe.config.folders import config_folders
from ditmoe.outside import printable

Trust = bool | str | Sequence[str]
"""What the person's command allows: false nothing, true all that is named, or these paths and hub names alone."""
PLAIN = (str, int, float, bool, type(None))
DEEPEST, LARGEST, MOST = 32, 2**24, 100_000
"""Levels, the largest number and the most values of a configuration."""
COUNTS = {"sampling.steps": 10_000, "workers": 256, "depth": 4096, "num_experts": 65_536, "iterations": 1000}
"""What no honest configuration has more of, though each alone takes little memory; by the end of its name."""


MOST_ORDER = 16
"""Of a solver."""


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


def check_plain(value: Any, what: str) -> None:
    """Refuse anything but nested dicts (of strings), lists and plain values, too deep or too many of them.

    Raises:
        ValueError: naming the first place.
    """
    left = MOST

    def walk(value: Any, name: str, depth: int) -> None:
        nonlocal left
        left -= 1
        if depth > DEEPEST or left < 0:
            raise ValueError(f"{what} is nested too deeply or holds too much at {name or 'its top'}")
        if type(value) is dict:
            for key, inner in value.items():
                if type(key) is not str:
                    raise ValueError(
                        f"{what} must have names for keys, got {printable(repr(key))} in {name or 'it'}"
                    )
                walk(inner, f"{name}.{printable(key)}".lstrip("."), depth + 1)
        elif type(value) is list:
            for index, inner in enumerate(value):
                walk(inner, f"{name}.{index}", depth + 1)
        elif type(value) not in PLAIN:
            raise ValueError(
                f"{what} must hold plain values, got {type(value).__name__} as {name or 'the whole'}"
            )
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{what} must hold finite numbers, got {value} as {name}")

    walk(value, "", 0)


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
    return {name: _admitted(config[name], name, file, trust) for name in sections}


def opened(config: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Options of a checked configuration that would open a path or a hub name, and what they would open."""
    for place, section in _sections(config, name):
        for option in opens(section):
            if isinstance(value := _at(section, option), str):
                yield f"{place}.{option}", value


def opens(section: Mapping[str, Any]) -> Sequence[str]:
    """Options of a section that open a path or a hub name, as the class that it names says."""
    return getattr(_find(section["_target_"]), "opens", ()) if "_target_" in section else ()


def withheld(config: Any) -> Iterator[tuple[str, str]]:
    """Options of an admitted configuration that may not be opened, and what they would open."""
    return ((leaf.option, leaf.value) for _, leaf in _leaves(config, "") if isinstance(leaf, Withheld))


def autoencoders(config: Mapping[str, Any]) -> Sequence[str]:
    """Classes of diffusers that may be the autoencoder of an admitted configuration's modality, if it has one."""
    section = config.get("modality") or {}
    return getattr(_find(section["_target_"]), "autoencoders", ()) if "_target_" in section else ()


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
    _check_values(section, name, file)
    for place, inner in _sections(section, name):
        target = inner["_target_"]
        if not is_allowed(target, None if trust is True else place):
            raise ValueError(
                f"{file} names a class that is not trusted, refused: {place}._target_ = {target!r}"
            )
        if place != name and inner.get("_partial_") is not True:
            raise ValueError(
                f"{file} wants {place} to be made before anybody asks, refused: it lacks _partial_"
            )
    kept, openable = _copy(section), dict(opened(section, name))
    _check_interpolations(section, name, file, openable)
    named = {trust} if isinstance(trust, str) else set() if isinstance(trust, bool) else set(map(str, trust))
    for place, text in _strings(section, name):
        if (_last(place), text) in _shipped()[1]:
            continue
        if place not in openable and is_path(text):
            raise ValueError(
                f"{file} holds a path where none belongs, refused: {place} = {printable(text)!r}"
            )
        if place in openable and trust is not True and text not in named:
            put(kept, place.removeprefix(f"{name}."), Withheld(text, place, file))
    return kept


def check_scheduler(config: Mapping[str, Any], file: Path) -> None:
    """Refuse what a scheduler's own file, as diffusers writes it, may not hold; it can make lists and tables of a size.

    Raises:
        ValueError: naming it.
    """
    finite = {
        k: v for k, v in config.items() if v not in (math.inf, -math.inf)
    }  # some bounds of diffusers are none
    check_plain(finite, f"the configuration of {file}")
    _check_values({k: v for k, v in config.items() if k[:1] != "_"}, "scheduler", file)
    _check_interpolations({k: v for k, v in config.items() if k[:1] != "_"}, "scheduler", file)


def _check_interpolations(section: Any, name: str, file: Path, paths: Collection[str] = ()) -> None:
    """Refuse `${}`, but in paths: nothing resolves it there, and a person's folder may be called so."""
    for place, value in _leaves(section, name):
        if isinstance(value, str) and "${" in value and place not in paths:
            raise ValueError(f"{file} holds an interpolation, refused: {place} = {printable(value)!r}")


def _check_values(section: Any, name: str, file: Path) -> None:
    for place, value in _leaves(section, name):
        last = _last(place)
        if name == "scheduler":
            most = MOST_ORDER if last.endswith("order") else COUNTS["sampling.steps"]
            if type(value) is int and abs(value) > most:
                raise ValueError(f"{file}: {place} is absurd, refused: {value}")
        most = COUNTS.get(place, COUNTS.get(last, LARGEST if last != "seed" else 2**64))
        if type(value) is int and abs(value) > most:
            raise ValueError(f"{file}: {place} is absurd, refused: {value}")
        if any(key[:1] == "_" and key not in ("_target_", "_partial_") for key in place.split(".")):
            raise ValueError(f"{file} holds an option that nobody has, refused: {place}")


def is_allowed(target: Any, place: str | None) -> bool:
    """Whether a configuration of a stranger may name this to be made.

    Args:
        place: where, as `modality.tokens`: our YAML files must name it in a section called so. None: the person trusts
            whoever made it, and any class will do, but no function.
    """
    if type(target) is not str:
        return False
    package, _, name = target.rpartition(".")
    listed = place is None or target in classes(place)
    of_others = (place == "scheduler" and package == "diffusers" and name.endswith("Scheduler")) or (
        place == "optimizer" and package == "torch.optim"
    )
    if not listed and not of_others:
        return False
    try:
        found = _find(target)
    except (ValueError, AttributeError):
        return False
    return inspect.isclass(found) and (listed or _is_scheduler(found) or _is_optimizer(found))


def _is_scheduler(found: type) -> bool:
    return {"SchedulerMixin", "ConfigMixin"} <= {base.__name__ for base in found.__mro__}


def _is_optimizer(found: type) -> bool:
    return any(base.__module__ == "torch.optim.optimizer" for base in found.__mro__)


def _shipped() -> tuple[Mapping[str, frozenset[str]], frozenset[tuple[str, str]]]:
    """Classes that our YAML files name, by the name of their section; and all other strings by that of their option.

    Ours are those of packages that the person installed, too, and of the folder that this command names.
    """
    return _named_in(tuple(config_folders()))


@cache
def _named_in(folders: Sequence[Path]) -> tuple[Mapping[str, frozenset[str]], frozenset[tuple[str, str]]]:
    targets, words = defaultdict(set), set()
    files = [(folder, file) for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    for folder, file in files:
        group = file.parent.relative_to(folder).as_posix()
        top = "" if group in (".", "experiment", "recipe") else group
        for place, text in _strings(yaml_files.read(file), top):
            if _last(place) == "_target_":
                targets[_last(place.removesuffix("._target_"))].add(text)
            else:
                words.add((_last(place), text))
    return {place: frozenset(names) for place, names in targets.items()}, frozenset(words)


def classes(place: str) -> frozenset[str]:
    """What a stranger's configuration may name at a place: what installed YAML files name at one called so."""
    return _shipped()[0].get(_last(place), frozenset())


def is_path(text: str) -> bool:
    """Whether a string could lead to a file elsewhere, or to the hub."""
    return any(mark in text for mark in ("/", "\\", "\0", "..")) or text.startswith("~")


def find(target: Any) -> Any:
    """What a dotted name names.

    Raises:
        ValueError: if there is nothing of that name.
    """
    try:
        return _find(target)
    except Exception as error:
        raise ValueError(f"{printable(target)} cannot be found: {error}") from error


def _find(target: str) -> Any:
    try:
        return pkgutil.resolve_name(target)
    except (ImportError, AttributeError) as error:
        raise ValueError(_why_not(target) or str(error)) from error


def _why_not(target: str) -> str:
    """What an import within a module of a dotted name failed by, where that is why the name leads to nothing."""
    parts = target.split(".")
    for end in range(1, len(parts)):
        module = ".".join(parts[:end])
        try:
            importlib.import_module(module)
        except ImportError as error:
            return "" if error.name == module else str(error)
    return ""


def _sections(value: Any, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dict that names a class, and its place."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield name, value
        for key, inner in value.items():
            yield from _sections(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _sections(inner, f"{name}.{index}")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _strings(value: Any, name: str) -> Iterator[tuple[str, str]]:
    return ((place, leaf) for place, leaf in _leaves(value, name) if isinstance(leaf, str))


def _last(dotted: str) -> str:
    return dotted.rpartition(".")[2]


def _at(section: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        section = section.get(key) if isinstance(section, dict) else None
    return section


def put(section: Any, dotted: str, value: Any) -> None:
    """Set an option, nested or not, if the section has it."""
    *outer, last = dotted.split(".")
    for key in outer:
        section = section[int(key)] if isinstance(section, list) else section.get(key)
        if section is None:
            return
    if last in section:
        section[last] = value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value
