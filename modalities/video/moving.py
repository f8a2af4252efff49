"""The built-in clips: two real handwritten digits of one class that move and bounce."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64, UInt8

from ditmoe.modality import Samples
from modalities.digits import CLASSES, SPLITS, digits

REFERENCE = 256
"""Clips that stand for a split when sets are measured."""
_SPEED = (0.5, 1.2)  # pixels per frame at 32 x 32


class MovingDigits:
    """Clips of white digits on black, each a function of its address alone.

    A label is the digit that both are; a split has digits of its own. Motion is even and finer than a pixel, and the
    two pass through each other.

    Args:
        size: (H, W), at least 16 on each side.
        frames: T, of a clip.
        stride: steps of the motion from frame to frame.
    """

    def __init__(self, size: Sequence[int], frames: int, stride: int = 1) -> None:
        if min(size) < 16:
            raise ValueError(f"modality.size must be at least 16 for the built-in digits, got {list(size)}")
        self.size, self.frames, self.stride = (int(size[0]), int(size[1])), frames, stride
        self.side = min(self.size) // 2

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return CLASSES

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[UInt8[np.ndarray, "B T H W 3"], Int64[np.ndarray, " B"]]:
        """Training clips and labels: clip i is number (step * world + rank) * size + i of an endless stream."""
        first = (step * world + rank) * size
        made = [self.clip("train", seed, number) for number in range(first, first + size)]
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
        rng = np.random.default_rng([list(SPLITS).index(split), seed, number])
        label = int(rng.integers(len(CLASSES)))
        canvas = np.zeros((self.frames, *self.size), np.float32)
        for digit in rng.choice(np.flatnonzero(labels == label), 2, replace=False):
            for frame, place in zip(canvas, self._places(rng), strict=True):
                _draw(frame, ink[digit], place)
        grey = canvas.round().astype(np.uint8)
        return grey[..., None].repeat(3, axis=-1), label

    def _places(self, rng: np.random.Generator) -> Float[np.ndarray, "T 2"]:
        """Corners of a square that moves evenly and is thrown back at the borders."""
        room = np.array(self.size, float) - self.side
        angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*_SPEED) * self.side / 16
        steps = (
            self.stride * np.arange(self.frames)[:, None] * speed * np.array([np.sin(angle), np.cos(angle)])
        )
        folded = (rng.uniform(0, 2, 2) * room + steps) % (2 * room)
        return np.minimum(folded, 2 * room - folded)


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
