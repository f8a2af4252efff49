"""The built-in clips: two real handwritten digits of one class that move, and bounce off the borders and each other."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64, UInt8

from ditmoe.modality import Samples
from modalities.latent.digits import CLASSES, digits
from modalities.shared.datasets import SPLITS, numbers

REFERENCE = 128
"""Clips that stand for a split when sets are measured."""
_SPEED = (0.025, 0.065)  # sides of a digit per frame
_NEAR = 0.85  # sides of a digit between the centres of two that meet

SMALLEST = 16
"""Side of a clip in pixels."""


class MovingDigits:
    """Clips of white digits on black, each a function of its address alone.

    A label is the digit that both are, three eighths of the smaller side large; a split has digits of its own.
    Motion is even and finer than a pixel; where two meet they exchange their speed along the axis on which they are
    further apart.

    Args:
        size: (H, W), at least 16 on each side.
        frames: T, of a clip.
        stride: steps of the motion from frame to frame.
        side: of a digit in pixels, if not three eighths.
    """

    def __init__(self, size: Sequence[int], frames: int, stride: int = 1, side: int | None = None) -> None:
        if min(size) < SMALLEST:
            raise ValueError(
                f"modality.size must be at least {SMALLEST} for the built-in digits, got {list(size)}"
            )
        self.size, self.frames, self.stride = (int(size[0]), int(size[1])), frames, stride
        self.side = side or max(8, 3 * min(self.size) // 8)

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return CLASSES

    def understood(self) -> str:
        """What this is, in a line."""
        return f"data     built in: two real digits that move, {len(CLASSES)} classes; each split has digits of its own"

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[UInt8[np.ndarray, "B T H W 3"], Int64[np.ndarray, " B"]]:
        """Training clips and labels: clip i is number (step * world + rank) * size + i of an endless stream."""
        made = [self.clip("train", seed, number) for number in numbers(size, step, rank, world)]
        return np.stack([clip for clip, _ in made]), np.array([label for _, label in made], np.int64)

    def reference(self, split: str, count: int = REFERENCE) -> Samples:
        """Clips of a split, always the same."""
        made = [self.clip(split, 0, number) for number in range(count)]
        labels = np.array([label for _, label in made], np.int64)
        names = [f"{CLASSES[label]}-{split}-{i:04d}" for i, label in enumerate(labels)]
        return Samples(np.stack([clip for clip, _ in made]), labels, names)

    def clip(self, split: str, seed: int, number: int) -> tuple[UInt8[np.ndarray, "T H W 3"], int]:
        """Clip `number` of a split's stream, and its label."""
        ink, labels = digits(split, self.side)
        rng = np.random.default_rng([SPLITS.index(split), seed, number])
        label = int(rng.integers(len(CLASSES)))
        canvas = np.zeros((self.frames, *self.size), np.float32)
        pair = rng.choice(np.flatnonzero(labels == label), 2, replace=False)
        for frame, places in zip(canvas, self._places(rng), strict=True):
            for digit, place in zip(pair, places, strict=True):
                _draw(frame, ink[digit], place)
        grey = canvas.round().astype(np.uint8)
        return grey[..., None].repeat(3, axis=-1), label

    def _places(self, rng: np.random.Generator) -> Float[np.ndarray, "T 2 2"]:
        """Upper left corners of the two digits in each frame."""
        room, near = np.array(self.size, float) - self.side, _NEAR * self.side
        place = rng.uniform(0, room, (2, 2))
        while (np.abs(place[1] - place[0]) < near).all():
            place = rng.uniform(0, room, (2, 2))
        angle, speed = rng.uniform(0, 2 * np.pi, 2), rng.uniform(*_SPEED, 2) * self.side
        velocity = speed[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
        places = []
        for _ in range(self.stride * (self.frames - 1) + 1):
            places.append(place)
            place = place + velocity
            velocity = np.where((place < 0) | (place > room), -velocity, velocity)
            place = room - np.abs(room - np.abs(place))
            gap, closing = place[1] - place[0], velocity[1] - velocity[0]
            axis = np.abs(gap).argmax()
            if (np.abs(gap) < near).all() and gap[axis] * closing[axis] < 0:
                velocity[:, axis] = velocity[::-1, axis]
        return np.stack(places[:: self.stride])


def _draw(
    frame: Float[np.ndarray, "H W"], ink: UInt8[np.ndarray, "s s"], place: Float[np.ndarray, "2"]
) -> None:
    """Put a digit at a place between pixels, by bilinear weights; where two meet, the lighter one is seen."""
    y, x = np.floor(place).astype(int)
    fy, fx = place - (y, x)
    padded = np.pad(ink.astype(np.float32), 1)
    rows = (1 - fy) * padded[1:] + fy * padded[:-1]
    moved = (1 - fx) * rows[:, 1:] + fx * rows[:, :-1]
    here = frame[y : y + len(moved), x : x + len(moved)]
    np.maximum(here, moved[: here.shape[0], : here.shape[1]], out=here)
