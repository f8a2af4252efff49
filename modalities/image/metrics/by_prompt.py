"""What benchmarks that judge pictures by their prompts share: files of what is required, options, and the control."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from ditmoe.modality import Samples
from ditmoe.outside import at_home, decoded, parse_json, printable, read_regular, shown
from modalities.shared.clip_score import OTHERS, prompts_of

LARGEST, MOST_LINES, LONGEST = 2**24, 10_000, 2_000
"""Bytes and lines of a file, and letters of a text."""
INTERVALS = "prompts are independent, pictures of one prompt are not"


@dataclass(frozen=True)
class Line:
    """What pictures of a prompt must show; lines of one tag are a task, or a category."""

    prompt: str
    tag: str


One = TypeVar("One", bound=Line)


@dataclass(frozen=True)
class Paths:
    """The options: a file of what is required, and a folder or hub name of a model."""

    file: str | PathLike
    model: str | PathLike


def option(evaluation: dict[str, Any], file: str, model: str, words: str) -> Paths | None:
    """Take two options that need each other out of those of an evaluation.

    Args:
        words: what they are, for errors.

    Raises:
        ValueError: if they are neither text nor null, or one of them lacks the other.
    """
    names = [f"modality.evaluation.{name}" for name in (file, model)]
    first, second = (evaluation.pop(name, None) for name in (file, model))
    for name, value in zip(names, (first, second), strict=True):
        if not isinstance(value, str | PathLike | None):
            raise ValueError(f"{name} must be a path or null, got {value!r}")
    if (first is None) != (second is None):
        given, lacks = names if second is None else names[::-1]
        raise ValueError(f"{given} needs {lacks} too: {words}")
    return None if first is None or second is None else Paths(first, second)


def of_samples(
    name: str, paths: Paths, prompts: Sequence[str] | None, read: Callable[[Path], dict[str, One]]
) -> dict[str, One]:
    """The requirements of a file that are of the prompts of samples, by prompt.

    Args:
        name: of the option.

    Raises:
        ValueError: one line, if there are none, or the file is none.
    """
    if not any(prompts or ()):
        raise ValueError(
            f"{name} judges samples by their prompts, of a model with conditioning=text or in prompts.json beside "
            "their files, and none are known: leave it out"
        )
    path = at_home(os.fspath(paths.file))  # of a stranger's configuration it says how to allow it
    every = tried(f"{name} must be a file of requirements, a JSON object a line", lambda: read(path))
    found = {one: every[one] for one in map(squeezed, prompts or ()) if one in every}
    if not found:
        raise ValueError(
            f"{name} must have requirements of the samples' prompts, and has of none, as {next(iter(every))!r}"
        )
    return found


def tried(must: str, make: Callable[[], Any]) -> Any:
    """What `make` makes, or one line on what must be."""
    try:
        return make()
    except (OSError, ValueError) as error:
        raise ValueError(f"{must}: {error}") from error


def pairs(
    name: str, samples: Samples, required: Mapping[str, One], progress: bool
) -> Iterator[tuple[UInt8[np.ndarray, "H W 3"], One, One | None]]:
    """Each picture with what is required of it, and what is of the next prompt of the task; None: it has no other.

    Pictures of other prompts are left out.
    """
    after = _following(required.values())
    bar = tqdm(samples.data, desc=name, unit="picture", leave=False, mininterval=1, disable=not progress)
    for picture, prompt in zip(bar, prompts_of(samples) or [], strict=True):
        if (own := required.get(squeezed(prompt))) is not None:
            yield picture, own, after.get(own.prompt)


def _following(required: Iterable[One]) -> dict[str, One]:
    tasks: dict[str, list[One]] = {}
    for each in required:
        tasks.setdefault(each.tag, []).append(each)
    several = (task for task in tasks.values() if len(task) > 1)
    return {one.prompt: task[i - len(task) + 1] for task in several for i, one in enumerate(task)}


def groups(required: Iterable[Line]) -> np.ndarray:
    """The number of the prompt that each picture is of."""
    return np.unique([one.prompt for one in required], return_inverse=True)[1]


def about_alone(name: str, required: Iterable[Line]) -> list[str]:
    """The note on tasks of pictures that have no other prompt."""
    tags = dict.fromkeys(one.tag for one in required)
    names = ", ".join(f"{name}/{tag}" for tag in tags)
    return [f"{OTHERS} has no {names}: all pictures have one prompt"] if tags else []


# --- files


def read(file: Path, make: Callable[[Any], One]) -> dict[str, One]:
    """Prompt -> what `make` makes of the line about it, of a file with a JSON object a line.

    Raises:
        OSError, ValueError: one line, with the number of the line that is wrong.
    """
    found: dict[str, One] = {}
    for number, line in enumerate(decoded(read_regular(file, LARGEST)).split("\n"), 1):
        if not line.strip():
            continue
        try:
            one = make(parse_json(line))
            if found.setdefault(one.prompt, one) != one:
                raise ValueError("prompt must be another than in an earlier line, of other requirements")
            if len(found) > MOST_LINES:
                raise ValueError(f"it must have at most {MOST_LINES} prompts")
        except ValueError as error:
            raise ValueError(f"line {number} of {printable(file)}: {printable(error)}") from error
    if not found:
        raise ValueError(f"{printable(file)} must hold a JSON object a line, got none")
    return found


def squeezed(prompt: str) -> str:
    """Without spaces that say nothing, as prompts are compared."""
    return " ".join(prompt.split())


def fields(node: Any, where: str, needed: Sequence[str], more: Sequence[str]) -> dict[str, Any]:
    """Those of a JSON object, which has all that are needed and no others."""
    if not isinstance(node, dict):
        raise ValueError(f"{where} must be a JSON object, got {shown(node)}")
    if unknown := sorted(set(node) - {*needed, *more}):
        raise ValueError(f"{where} must have no {unknown[0]}; it may have {', '.join((*needed, *more))}")
    if missing := [name for name in needed if name not in node]:
        raise ValueError(f"{where} must have {' and '.join(missing)}")
    return node


def text(value: Any, where: str) -> str:
    """A text that says something."""
    if not isinstance(value, str) or not 0 < len(value.strip()) <= LONGEST or value != printable(value):
        raise ValueError(f"{where} must be printable text of at most {LONGEST} letters, got {shown(value)}")
    return value
