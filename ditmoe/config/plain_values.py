"""Checks the values of an untrusted configuration: plain, not too many, and no number too large for a machine."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ditmoe.config.nested import last_part, leaves
from ditmoe.outside import printable

PLAIN = (str, int, float, bool, type(None))
DEEPEST, LARGEST, MOST = 32, 2**24, 100_000
"""Most nesting levels, largest whole number and most values of a configuration."""
COUNTS = {"sampling.steps": 10_000, "workers": 256, "depth": 4096, "num_experts": 65_536, "iterations": 1000}
"""Smaller bounds for some options, by full or last name: no reasonable configuration exceeds them."""
MOST_ORDER = 16
"""Highest order of a solver."""


def check_plain(value: Any, what: str) -> None:
    """Check that a value consists of nested dicts with string keys, lists and plain values, within the limits.

    Raises:
        ValueError: naming the first invalid entry.
    """
    left = MOST

    def walk(value: Any, name: str, depth: int) -> None:
        nonlocal left
        left -= 1
        if depth > DEEPEST or left < 0:
            most = f"{DEEPEST} levels" if depth > DEEPEST else f"{MOST} values"
            raise ValueError(f"{what} must have at most {most}, got more at {name or 'its top level'}")
        if type(value) is dict:
            for key, inner in value.items():
                if type(key) is not str:
                    raise ValueError(
                        f"{what} must have names as keys, got {printable(repr(key))} in {name or 'it'}"
                    )
                walk(inner, f"{name}.{printable(key)}".lstrip("."), depth + 1)
        elif type(value) is list:
            for index, inner in enumerate(value):
                walk(inner, f"{name}.{index}", depth + 1)
        elif type(value) not in PLAIN:
            raise ValueError(
                f"{what} must hold plain values, got {type(value).__name__} as {name or 'its top level'}"
            )
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{what} must hold finite numbers, got {value} as {name}")

    walk(value, "", 0)


def check_levels(config: Mapping[str, Any]) -> None:
    """Reject, before training, a configuration nested so deeply that its checkpoint could not be read (`check_plain`).

    Raises:
        ValueError: naming the top-level option.
    """
    for name, value in config.items():
        level: list[Any] = [value]
        for _ in range(DEEPEST):
            inner = (
                each.values() if isinstance(each, dict) else each
                for each in level
                if isinstance(each, dict | list)
            )
            level = [value for values in inner for value in values]
        if level:
            raise ValueError(f"{printable(name)} must be nested at most {DEEPEST - 1} levels deep, got more")


def check_scheduler(config: Mapping[str, Any], file: Path) -> None:
    """Check the configuration file of a diffusers scheduler, whose numbers can set the size of lists and tables.

    Raises:
        ValueError: naming the invalid option.
    """
    infinite = (math.inf, -math.inf)  # diffusers uses infinity for some absent bounds
    check_plain({k: v for k, v in config.items() if v not in infinite}, f"the configuration of {file}")
    own = {k: v for k, v in config.items() if k[:1] != "_"}
    check_values(own, "scheduler", file)
    check_interpolations(own, "scheduler", file)


def check_interpolations(section: Any, name: str, file: Path, paths: Collection[str] = ()) -> None:
    """Raises ValueError for `${}` outside of paths, where it is not resolved and may be part of a folder's name."""
    for place, value in leaves(section, name):
        if isinstance(value, str) and "${" in value and place not in paths:
            raise ValueError(f"{file} holds an interpolation, refused: {place} = {printable(value)!r}")


def check_values(section: Any, name: str, file: Path) -> None:
    """Raises ValueError for whole numbers that are too large for their option, and for options that begin with `_`."""
    for place, value in leaves(section, name):
        last = last_part(place)
        if name == "scheduler":
            most = MOST_ORDER if last.endswith("order") else COUNTS["sampling.steps"]
            if type(value) is int and abs(value) > most:
                raise ValueError(f"{file}: {place} must lie between -{most} and {most}, got {value}")
        most = COUNTS.get(place, COUNTS.get(last, LARGEST if last != "seed" else 2**64))
        if type(value) is int and abs(value) > most:
            raise ValueError(f"{file}: {place} must lie between -{most} and {most}, got {value}")
        if any(key[:1] == "_" and key not in ("_target_", "_partial_") for key in place.split(".")):
            raise ValueError(f"{file} holds an option that is not allowed, refused: {place}")
