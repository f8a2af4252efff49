"""What may stand in a configuration: numbers that are numbers, and the options that a class takes by its signature."""

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
"""What all generators take, those of NumPy and torch, and what fits their integers at all."""
LARGEST_NUMBER = 1e30
"""What still can be multiplied by something in float32; beyond it products become infinite, and no whole number."""
LONGEST_SHOWN = 200
"""Characters of a value that is no number, in the line that refuses it: a stranger's may have millions."""
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
    """Refuse numbers of a configuration that are none, and those that no generator or tensor takes, wherever they are.

    Raises:
        ValueError: naming the first.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    if isinstance(value, float) and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"{name} must be between {-LARGEST_NUMBER:g} and {LARGEST_NUMBER:g}, got {value}")
    if name.rsplit(".", 1)[-1] == "seed" and value is not None:
        check_number(name, value, 0, LARGEST_SEED, whole=True)
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        raise ValueError(f"{name} must be a whole number of 64 bits at most, got one of {value.bit_length()}")
    if isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            check_numbers(inner, f"{name}.{key}" if name else str(key))


def largest_words(config: Any, most: int = 3) -> str:
    """The largest numbers of a configuration, with their names; what is too large is most likely one of them."""
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
    """Refuse what is not a finite number within bounds.

    Args:
        least, most: bounds that are allowed.
        above, below: bounds that are not.
        whole: an integer.

    Raises:
        ValueError: one line that says what must hold and what came.
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
    got = repr(value)
    shown = got if len(got) <= LONGEST_SHOWN else f"{got[:LONGEST_SHOWN]}..."
    raise ValueError(f"{name} must be {', '.join(filter(None, (kind, words)))}, got {shown}")


class TooFewError(ValueError):
    """There are too few samples to be measured, which keeps nobody from training on them."""


PLAIN = str | int | float | list | tuple | dict | None
"""What stands in a YAML."""


class Part(partial):
    """A class with some of its options, whose others come later; then all must fit."""

    name: str

    @classmethod
    def of(cls, name: str, target: Callable[..., Any], options: Mapping[str, Any]) -> "Part":
        """Of a target that a configuration calls `name`.

        Raises:
            ValueError: for an option that it does not take, or of the wrong type.
        """
        check_options(name, target, options)
        part = cls(target, **options)
        part.name = name
        return part

    def __call__(self, /, *values: Any, **others: Any) -> Any:
        return call(self.name, self.func, *values, **{**self.keywords, **others})


def call(name: str, target: Callable[..., Any], *values: Any, **options: Any) -> Any:
    """Make something.

    Raises:
        ValueError: in place of the TypeError for an option that it does not take, or one that is missing.
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
    """Refuse options that a target does not take, and values of another type than its signature has.

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
    """Raises ValueError for options that are not known, unless others are taken as well."""
    if not others and (unknown := [key for key in options if key not in known]):
        raise ValueError(
            f"{name} does not take {', '.join(unknown)}; it takes {', '.join(known) or 'no options'}"
        )


def parameters(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Options of a class or a function by name, with those that it hands on to a parent; whether it takes others."""
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
    """Whether a plain value of a configuration may stand where a signature says `kind`; other values always may."""
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
    """Whether a signature asks for what makes something."""
    if get_origin(kind) in (Union, UnionType):
        return any(map(_is_maker, get_args(kind)))
    return Callable in (kind, get_origin(kind))


def callable_or_array(shape: type) -> bool:
    """What no plain value is."""
    from torch import Tensor  # a second, which a mistake on the command line should not wait for

    return shape is Callable or issubclass(shape, Tensor | np.ndarray)  # type: ignore[comparison-overlap]


def in_words(kind: Any) -> str:
    """What a signature asks for."""
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
