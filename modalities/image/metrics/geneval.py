"""GenEval (arXiv 2310.11513): what a picture must show, and whether the objects that a detector found in it do."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from ditmoe.outside import check_number, shown
from modalities.image.metrics import by_prompt

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
MOST = 16
"""Objects of a class that count, those of the highest scores."""
THRESHOLD, OF_COUNTING = 0.3, 0.9
"""Objects count with a score above this; the second is for the task `counting`."""
SLACK, TILT = 0.1, 0.5
"""Of both sizes, what an offset is shortened by; and what a component of its direction must exceed."""
SAME = {
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted plant",
    "diningtable": "dining table", "tvmonitor": "tv", "mouse": "computer mouse", "remote": "tv remote",
    "keyboard": "computer keyboard",
}  # fmt: skip
"""Classes of COCO by the names of detectors, and by those of GenEval."""
MOST_CLAUSES = 16
"""Of a list."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are the first ones outside."""


@dataclass(frozen=True)
class Found:
    """An object that a detector found: its class, with a score up to 1, and where it is."""

    name: str
    score: float
    box: Box
    mask: Bool[np.ndarray, "H W"]


@dataclass(frozen=True)
class Clause:
    """So many objects of a class; all of a colour, and all in a relation to those of an earlier clause, if given."""

    name: str
    count: int
    colour: str | None = None
    place: tuple[str, int] | None = None


@dataclass(frozen=True)
class Required(by_prompt.Line):
    """What pictures of a prompt must show, `include`, and must not show, `exclude`; `tag` is the task."""

    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    @property
    def classes(self) -> list[str]:
        return [clause.name for clause in (*self.include, *self.exclude)]

    @property
    def threshold(self) -> float:
        return OF_COUNTING if self.tag == "counting" else THRESHOLD

    @property
    def has_colours(self) -> bool:
        return any(clause.colour for clause in self.include)


def canonical(name: str) -> str:
    """A class under one name, whoever names it."""
    return SAME.get(name, name)


def is_right(required: Required, objects: Iterable[Found], colour: Callable[[Found, str], str]) -> bool:
    """Whether a picture with these objects is right.

    Of each class to be included there must be as many as asked for, and the colour and place of those of the highest
    scores must be right; further ones are harmless, unless so many are excluded.

    Args:
        colour: of an object, given its class in words; called only where a colour is asked for.
    """
    seen = _by_class(objects, required.threshold)
    groups: list[Sequence[Found]] = []
    for clause in required.include:
        group = seen.get(canonical(clause.name), [])[: clause.count]
        if len(group) < clause.count:
            return False
        if clause.colour and any(colour(each, clause.name) != clause.colour for each in group):
            return False
        if clause.place:
            relation, to = clause.place
            if any(relation not in relations(a.box, b.box) for a in group for b in groups[to]):
                return False
        groups.append(group)
    return all(len(seen.get(canonical(clause.name), [])) < clause.count for clause in required.exclude)


def relations(a: Box, b: Box) -> set[str]:
    """How a lies relative to b: where the offset of its centre, shortened, has a direction; up to two.

    o = c_a - c_b,    d = sign(o) max(|o| - 0.1 (s_a + s_b), 0) / |o|_2,    of sizes s;    each of |d| > 0.5 counts
    """
    (low_a, high_a), (low_b, high_b) = (np.array(box, np.float64).reshape(2, 2) for box in (a, b))
    offset = (low_a + high_a - low_b - high_b) / 2
    shortened = np.maximum(np.abs(offset) - SLACK * (high_a - low_a + high_b - low_b), 0) * np.sign(offset)
    if (np.abs(shortened) < 1e-3).all():
        return set()
    x, y = shortened / np.linalg.norm(offset)
    holds = (x < -TILT, x > TILT, y < -TILT, y > TILT)
    return {name for name, true in zip(RELATIONS, holds, strict=True) if true}


def _by_class(objects: Iterable[Found], threshold: float) -> dict[str, list[Found]]:
    seen: dict[str, list[Found]] = {}
    for each in sorted(objects, key=lambda each: -each.score):
        if each.score > threshold and len(group := seen.setdefault(canonical(each.name), [])) < MOST:
            group.append(each)
    return seen


def read(file: Path) -> dict[str, Required]:
    """Prompt -> requirements, of a file such as GenEval's `evaluation_metadata.jsonl`: a JSON object a line.

    Raises:
        OSError, ValueError: one line, with the number of the line that is wrong.
    """
    return by_prompt.read(file, _required)


def _required(node: Any) -> Required:
    fields = by_prompt.fields(node, "it", ("tag", "prompt", "include"), ("exclude",))
    if not re.fullmatch(r"\w{1,40}", tag := by_prompt.text(fields["tag"], "tag"), re.ASCII):
        raise ValueError(f"tag must be at most 40 letters, digits and _, got {shown(tag)}")
    prompt = by_prompt.squeezed(by_prompt.text(fields["prompt"], "prompt"))
    include = _clauses(fields["include"], "include", 1, ("color", "position"))
    return Required(prompt, tag, include, _clauses(fields.get("exclude", []), "exclude", 0, ()))


def _clauses(some: Any, name: str, least: int, more: Sequence[str]) -> tuple[Clause, ...]:
    if not isinstance(some, list) or not least <= len(some) <= MOST_CLAUSES:
        raise ValueError(f"{name} must be a list of {least} to {MOST_CLAUSES} objects, got {shown(some)}")
    return tuple(_clause(each, f"{name}[{i}]", i, more) for i, each in enumerate(some))


def _clause(node: Any, where: str, earlier: int, more: Sequence[str]) -> Clause:
    fields = by_prompt.fields(node, where, ("class", "count"), more)
    check_number(f"{where}.count", fields["count"], 1, MOST, whole=True)
    colour, place = fields.get("color"), None
    if "color" in fields and colour not in COLOURS:
        raise ValueError(f"{where}.color must be one of {', '.join(COLOURS)}, got {shown(colour)}")
    if "position" in fields:
        place = _place(fields["position"], f"{where}.position", earlier)
    return Clause(by_prompt.text(fields["class"], f"{where}.class"), fields["count"], colour, place)


def _place(value: Any, where: str, earlier: int) -> tuple[str, int]:
    if not isinstance(value, list) or len(value) != 2 or value[0] not in RELATIONS:
        said = ", ".join(RELATIONS)
        raise ValueError(f"{where} must be a list of {said}, and a number of include, got {shown(value)}")
    if not earlier:
        raise ValueError(f"{where} must refer to an earlier one of include, but this is the first")
    check_number(f"the number in {where}", value[1], 0, earlier - 1, whole=True)
    return value[0], value[1]
