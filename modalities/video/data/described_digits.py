"""Moving digits in words: which digit is where and moves which way, and clips of which that is true."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from modalities.shared.digits import NUMERALS

WAYS = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
"""Where a digit goes: rows and columns per step."""
SWERVE = np.pi / 9
"""Radians by which a way may differ from where it is said to go."""
_ROWS, _COLUMNS = ("upper", "", "lower"), ("left", "", "right")


@dataclass(frozen=True)
class Scene:
    """What happens in a clip of two digits.

    Attributes:
        classes: of the two.
        ink: which digits of the split they are.
        places: their upper left corners, in pixels.
        ways: where each goes at first, an index into `WAYS`; None where nobody says.
        room: of a corner, along rows and columns, in pixels.
    """

    classes: Int64[np.ndarray, "2"]
    ink: Int64[np.ndarray, "2"]
    places: Float[np.ndarray, "T 2 2"]
    room: Float[np.ndarray, "2"]
    ways: Sequence[int] | None = None

    @property
    def label(self) -> int:
        """The class of both, or the number of classes where they differ."""
        first, second = self.classes.tolist()
        return first if first == second else len(NUMERALS)


def is_held_out(a: int, b: int) -> bool:
    """Whether a pair of digits is in no training clip that has a caption: those whose sum is nine.

    Five of 45 pairs, each digit in one of them.
    """
    return a + b == 9


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A scene in a sentence: "a three moving left and a seven in the lower right moving up"."""
    assert scene.ways is not None
    said = []
    for i in rng.permutation(2):
        where = f" {place_of(scene.places[0, i], scene.room)}" if rng.random() < 0.5 else ""
        name, way = NUMERALS[scene.classes[i]], list(WAYS)[scene.ways[i]]
        said.append(f"{'an' if name[0] == 'e' else 'a'} {name}{where} moving {way}")
    start = "two digits: " if rng.random() < 0.25 else ""
    return start + " and ".join(said)


def place_of(corner: Float[np.ndarray, "2"], room: Float[np.ndarray, "2"]) -> str:
    """Where a digit is, of nine places."""
    row, column = np.minimum(3 * corner / room, 2).astype(int)
    words = [word for word in (_ROWS[row], _COLUMNS[column]) if word]
    if not words:
        return "in the middle"
    if len(words) == 2:
        return f"in the {words[0]} {words[1]}"
    return {"upper": "at the top", "lower": "at the bottom"}.get(words[0]) or f"on the {words[0]}"


def keeps_its_ways(places: Float[np.ndarray, "T 2 2"], ways: Sequence[int]) -> bool:
    """Whether both digits go where they are said to until the middle of the clip, so that one can see it."""
    half = places[: 1 + len(places) // 2]
    towards = np.array([list(WAYS.values())[way] for way in ways])
    steps = np.diff(half, axis=0)
    along = (steps * towards).sum(-1)
    return bool((along > 0).all() and (along > np.abs(steps).max(-1) * 0.99).all())
