"""Captions of moving digits: which digit is where and moves in which direction, and clips that match them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from modalities.shared.digits import NUMERALS

WAYS = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
"""Directions of motion: rows and columns per step."""
SWERVE = np.pi / 9
"""Largest angle, in radians, between a motion and the direction in its caption."""
_ROWS, _COLUMNS = ("upper", "", "lower"), ("left", "", "right")


@dataclass(frozen=True)
class Scene:
    """The content of a clip of two digits.

    Attributes:
        classes: their classes.
        ink: their indices among the digits of the split.
        places: their upper left corners, in pixels.
        ways: their initial directions, indices into `WAYS`; None without captions.
        room: range of a corner along rows and columns, in pixels.
    """

    classes: Int64[np.ndarray, "2"]
    ink: Int64[np.ndarray, "2"]
    places: Float[np.ndarray, "T 2 2"]
    room: Float[np.ndarray, "2"]
    ways: Sequence[int] | None = None

    @property
    def label(self) -> int:
        """The class of both, or the number of classes if they differ."""
        first, second = self.classes.tolist()
        return first if first == second else len(NUMERALS)


def is_held_out(a: int, b: int) -> bool:
    """Whether a pair of digits is held out of the captioned training clips: if their sum is nine.

    These are five of 45 pairs, each digit in one of them.
    """
    return a + b == 9


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Caption of a scene: "a three moving left and a seven in the lower right moving up"."""
    assert scene.ways is not None
    said = []
    for i in rng.permutation(2):
        where = f" {place_of(scene.places[0, i], scene.room)}" if rng.random() < 0.5 else ""
        name, way = NUMERALS[scene.classes[i]], list(WAYS)[scene.ways[i]]
        said.append(f"{'an' if name[0] == 'e' else 'a'} {name}{where} moving {way}")
    start = "two digits: " if rng.random() < 0.25 else ""
    return start + " and ".join(said)


def place_of(corner: Float[np.ndarray, "2"], room: Float[np.ndarray, "2"]) -> str:
    """The position of a digit in words, one of nine."""
    row, column = np.minimum(3 * corner / room, 2).astype(int)
    words = [word for word in (_ROWS[row], _COLUMNS[column]) if word]
    if not words:
        return "in the middle"
    if len(words) == 2:
        return f"in the {words[0]} {words[1]}"
    return {"upper": "at the top", "lower": "at the bottom"}.get(words[0]) or f"on the {words[0]}"


def keeps_its_ways(places: Float[np.ndarray, "T 2 2"], ways: Sequence[int]) -> bool:
    """Whether both digits keep the directions of the caption until the middle of the clip, so that it is visible."""
    half = places[: 1 + len(places) // 2]
    towards = np.array([list(WAYS.values())[way] for way in ways])
    steps = np.diff(half, axis=0)
    along = (steps * towards).sum(-1)
    return bool((along > 0).all() and (along > np.abs(steps).max(-1) * 0.99).all())
