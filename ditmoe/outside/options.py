"""Checks values of a configuration: numbers and their bounds, and options against the signature of their class."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from types import FunctionType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np

LARGEST_SEED = LARGEST_WHOLE = 2**63 - 1
"""Largest seed of the generators of NumPy and torch, and largest value of their integers."""
LARGEST_NUMBER = 1e30
"""Bound on numbers, which leaves room for products in float32; larger ones become infinite."""
SMALLEST_NUMBER = 1e-30
"""Bound on the size of numbers other than 0; products of smaller ones in float32 become 0."""
LONGEST_SHOWN = 200
"""Characters of an invalid value that an error shows; values of untrusted files may have millions."""
WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    Sequence: "a list",
    Mapping: "a section",
    Callable: "a section with a _target_",
    Path: "a path",
    PathLike: "a path",
}


def check_numbers(value: Any, name: str = "") -> None:
    """Raise for numbers in nested values that are not finite, or too large or too small for generators and tensors.

    Raises:
        ValueError: naming the first.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    if isinstance(value, float) and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"{name} must be between {-LARGEST_NUMBER:g} and {LARGEST_NUMBER:g}, got {value}")
    if isinstance(value, float) and 0 < abs(value) < SMALLEST_NUMBER:
        raise ValueError(f"{name} must be 0, or at least {SMALLEST_NUMBER:g} in size, got {value}")
    if name.rsplit(".", 1)[-1] == "seed" and value is not None:
        check_number(name, value, 0, LARGEST_SEED, whole=True)
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        raise ValueError(f"{name} must be a whole number of 64 bits at most, got one of {value.bit_length()}")
    if isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            check_numbers(inner, f"{name}.{key}" if name else str(key))


def largest_words(config: Any, most: int = 3) -> str:
    """The largest numbers of a configuration with their names, for an error about numbers that are too large."""
    found: list[tuple[float, str]] = []

    def walk(node: Any, name: str) -> None:
        if isinstance(node, Mapping):
            for key, inner in node.items():
                walk(inner, f"{name}.{key}".lstrip("."))
        elif isinstance(node, list | tuple):
            for number, inner in enumerate(node):
                walk(inner, f"{name}.{number}")
        elif type(node) in (int, float) and name.rsplit(".", 1)[-1] != "seed":
            found.append((node, name))

    walk(config, "")
    return ", ".join(f"{name} is {value}" for value, name in sorted(found, reverse=True)[:most])


def check_number(
    name: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    whole: bool = False,
) -> None:
    """Raise unless a value is a finite number within bounds.

    Args:
        least, most: inclusive bounds.
        above, below: exclusive bounds.
        whole: whether it must be an integer.

    Raises:
        ValueError: one line with what must hold and what it got.
    """
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    number = number and abs(value) < math.inf
    if number and least <= value <= most and above < value < below:
        return
    if math.isfinite(least) and math.isfinite(most):
        words = f"between {least} and {most}"
    else:
        bounds = {"at least": least, "at most": most, "above": above, "below": below}
        words = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
    kind = "" if number else "a whole number" if whole else "a finite number"
    raise ValueError(f"{name} must be {', '.join(filter(None, (kind, words)))}, got {shown(value)}")


def shown(value: Any) -> str:
    """What an error says of a value: its `repr`, cut to `LONGEST_SHOWN` characters."""
    got = repr(value)
    return got if len(got) <= LONGEST_SHOWN else f"{got[:LONGEST_SHOWN]}..."


class TooFewError(ValueError):
    """There are too few samples for a metric; training on them is possible."""


PLAIN = str | int | float | list | tuple | dict | None
"""Types of plain values in a YAML file."""


class Part(partial):
    """A class with some of its options; the others are given, and all are checked, when it is called."""

    name: str

    @classmethod
    def of(cls, name: str, target: Callable[..., Any], options: Mapping[str, Any]) -> "Part":
        """A part of a target that a configuration calls `name`.

        Raises:
            ValueError: for an option that the target does not accept, or of the wrong type.
        """
        check_options(name, target, options)
        part = cls(target, **options)
        part.name = name
        return part

    def __call__(self, /, *values: Any, **others: Any) -> Any:
        return call(self.name, self.func, *values, **{**self.keywords, **others})


def call(name: str, target: Callable[..., Any], *values: Any, **options: Any) -> Any:
    """Call a class or a function that a configuration calls `name`.

    Raises:
        ValueError: instead of TypeError, for an option that it does not accept, or one that is missing.
    """
    known, others = parameters(target)
    needed = [each for each in known.values() if each.default is each.empty and not others]
    check_names(name, known, others, options)
    if missing := [each.name for each in needed[len(values) :] if each.name not in options]:
        raise ValueError(f"{name} must be given {', '.join(missing)}")
    try:
        return target(*values, **options)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise ValueError(f"{name} does not take these options: {error}") from error


def check_options(name: str, target: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise for options that a target does not accept, and for values of another type than in its signature.

    Raises:
        ValueError: naming target and option.
    """
    known, others = parameters(target)
    check_names(name, known, others, options)
    for key, value in options.items():
        kind = known[key].annotation if key in known else Any
        if not fits(value, kind):
            raise ValueError(f"{key} of {name} must be {in_words(kind)}, got {value!r}")
        if _is_maker(kind) and not isinstance(value, PLAIN | partial | FunctionType | type):
            raise ValueError(f"{key} of {name} is made later: its section must say _partial_: true")


def check_names(name: str, known: Mapping[str, Any], others: bool, options: Mapping[str, Any]) -> None:
    """Raises ValueError for options that are not known, unless `others` are accepted."""
    if not others and (unknown := [key for key in options if key not in known]):
        raise ValueError(
            f"{name} does not take {', '.join(unknown)}; it takes {', '.join(known) or 'no options'}"
        )


def parameters(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Options of a class or a function by name, with those it passes to a parent; and whether it accepts others."""
    found: dict[str, inspect.Parameter] = {}
    makers = (
        [vars(c)["__init__"] for c in target.__mro__ if "__init__" in vars(c)]
        if isinstance(target, type)
        else [target]
    )
    for maker in makers:
        try:
            own = list(inspect.signature(maker).parameters.values())
        except (TypeError, ValueError):  # written in C
            return found, True
        for each in own[isinstance(target, type) :]:
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
                found.setdefault(each.name, each)
        if all(each.kind is not each.VAR_KEYWORD for each in own):
            return found, False
    return found, True


def fits(value: Any, kind: Any) -> bool:
    """Whether a plain value of a configuration fits the annotation `kind`; other values always do."""
    origin, inner = get_origin(kind), get_args(kind)
    if not isinstance(value, PLAIN):
        return True
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if kind is Any or kind is inspect.Parameter.empty:
        return True
    if kind in (None, NoneType):
        return value is None
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind in (int, float, str):
        return isinstance(value, (int, float) if kind is float else kind)
    shape = origin or kind
    if not isinstance(shape, type):
        return True
    if shape in (list, tuple) or shape is Sequence:
        if not isinstance(value, list | tuple):
            return False
        fixed = shape is tuple and inner and inner[-1] is not ...
        each = inner if fixed else [inner[0] if inner else Any] * len(value)
        return len(each) == len(value) and all(map(fits, value, each))
    if shape is dict or shape is Mapping:
        return isinstance(value, dict)
    if issubclass(shape, PathLike):
        return isinstance(value, str)
    return not callable_or_array(shape)


def _is_maker(kind: Any) -> bool:
    """Whether an annotation is a callable, which builds the value later."""
    if get_origin(kind) in (Union, UnionType):
        return any(map(_is_maker, get_args(kind)))
    return Callable in (kind, get_origin(kind))


def callable_or_array(shape: type) -> bool:
    """Whether a type is a callable, a tensor or an array, which no plain value is."""
    from torch import Tensor  # takes a second, so not for errors of the command line

    return shape is Callable or issubclass(shape, Tensor | np.ndarray)  # type: ignore[comparison-overlap]


def in_words(kind: Any) -> str:
    """An annotation in words, for an error."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(in_words, get_args(kind))))
    shape = get_origin(kind) or kind
    shape = {list: Sequence, tuple: Sequence, dict: Mapping, None: NoneType}.get(shape, shape)
    what = WORDS.get(shape, getattr(shape, "__name__", str(shape)))
    inner = get_args(kind)
    if shape is Sequence and inner and all(each in (int, float, str) for each in inner):
        plural = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts"}[WORDS[inner[0]]]
        return f"a list of {f'{len(inner)} ' if len(inner) > 1 else ''}{plural}"
    return what
