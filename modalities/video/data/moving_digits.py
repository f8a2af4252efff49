"""The built-in clips: two handwritten digits that move and bounce off the borders and each other."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int64, UInt8

from ditmoe.modality import Samples
from modalities.shared.captions import Described, Labels
from modalities.shared.datasets import SPLITS, numbers
from modalities.shared.digits import CLASSES, digits
from modalities.video.data.described_digits import SWERVE, Scene, describe, is_held_out, keeps_its_ways

REFERENCE = 128
"""Clips of a split used for evaluation."""
_SPEED = (0.025, 0.065)  # digit sizes per frame
_WORDS = 4  # address of a random stream
_NEAR = 0.85  # distance of the centres at a collision, in digit sizes

SMALLEST = 16
"""Smallest side of a clip in pixels."""


class MovingDigits:
    """Clips of white digits on black, each determined by seed and index.

    The label is the class of both digits, whose size is three eighths of the smaller side; each split has its own
    digits. Motion is uniform, with subpixel positions; when digits collide they exchange their velocities along the
    axis on which they are further apart.

    With captions the two digits are arbitrary, without a class unless they are equal; they move up, right, down or left
    until at least the middle of the clip, as the caption says. Pairs of `is_held_out` are in no training clip, and in
    all clips of "val"; "test" is distributed as training.

    Args:
        size: (H, W), at least 16 on each side.
        frames: T of a clip.
        stride: steps of the motion from frame to frame.
        side: size of a digit in pixels, if not three eighths.
        captions: whether clips have two arbitrary digits and a caption.
    """

    def __init__(
        self,
        size: Sequence[int],
        frames: int,
        stride: int = 1,
        side: int | None = None,
        captions: bool = False,
    ) -> None:
        if min(size) < SMALLEST:
            raise ValueError(
                f"modality.size must be at least {SMALLEST} for the built-in digits, got {list(size)}"
            )
        self.size, self.frames, self.stride = (int(size[0]), int(size[1])), frames, stride
        self.side = side or max(8, 3 * min(self.size) // 8)
        self.captions = captions

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return CLASSES

    def understood(self) -> str:
        """The summary of the data, in a line."""
        what = "any two, and a caption" if self.captions else f"{len(CLASSES)} classes"
        return f"data     built in: two real digits that move, {what}; each split has digits of its own"

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[UInt8[np.ndarray, "B T H W 3"], Labels]:
        """Training clips and labels: clip i has index (step * world + rank) * size + i in an infinite stream."""
        return self._made("train", seed, numbers(size, step, rank, world))

    def reference(self, split: str, count: int = REFERENCE) -> Samples:
        """A fixed set of clips of a split."""
        data, found = self._made(split, 0, range(count))
        if isinstance(found, Described):
            names = [f"{found.captions[i]}-{split}-{i:04d}" for i in range(count)]
            return Samples(data, None, names, found.asked)
        names = [f"{CLASSES[label]}-{split}-{i:04d}" for i, label in enumerate(found)]
        return Samples(data, found, names)

    def clip(self, split: str, seed: int, number: int) -> tuple[UInt8[np.ndarray, "T H W 3"], int]:
        """Clip `number` of a split's stream, and its label, `len(CLASSES)` if its digits differ."""
        scene = self.scene(split, seed, number)
        return self.drawn(scene, split), scene.label

    def caption(self, split: str, seed: int, number: int) -> str:
        """The caption of that clip."""
        return self._told(self.scene(split, seed, number), seed, number)

    def captions_of_split(self, split: str, count: int = 2000) -> Iterator[str]:
        """The distinct captions of the first clips of a split."""
        yield from dict.fromkeys(self.caption(split, 0, number) for number in range(count))

    def scene(self, split: str, seed: int, number: int) -> Scene:
        """The scene of a clip of a split's stream."""
        labels = digits(split, self.side)[1]
        rng = np.random.default_rng([SPLITS.index(split), seed, number])
        room = np.array(self.size, float) - self.side
        if self.captions:
            return self._of_any_two(labels, split, room, rng)
        label = int(rng.integers(len(CLASSES)))
        pair = rng.choice(np.flatnonzero(labels == label), 2, replace=False)
        return Scene(np.array([label, label]), pair, self._places(rng), room)

    def drawn(self, scene: Scene, split: str) -> UInt8[np.ndarray, "T H W 3"]:
        """Render a scene."""
        ink = digits(split, self.side)[0]
        canvas = np.zeros((self.frames, *self.size), np.float32)
        for digit, places in zip(scene.ink, scene.places.swapaxes(0, 1), strict=True):
            _draw(canvas, ink[digit], places)
        grey = canvas.round().astype(np.uint8)
        return grey[..., None].repeat(3, axis=-1)

    def _made(self, split: str, seed: int, which: Sequence[int]) -> tuple[np.ndarray, Labels]:
        scenes = [self.scene(split, seed, number) for number in which]
        clips = np.stack([self.drawn(scene, split) for scene in scenes])
        labels = np.array([scene.label for scene in scenes], np.int64)
        if not self.captions:
            return clips, labels
        told = [self._told(scene, seed, number) for scene, number in zip(scenes, which, strict=True)]
        return clips, Described(labels, told)

    @staticmethod
    def _told(scene: Scene, seed: int, number: int) -> str:
        return describe(scene, np.random.default_rng([seed, _WORDS, number]))

    def _of_any_two(
        self, labels: Int64[np.ndarray, " S"], split: str, room: np.ndarray, rng: np.random.Generator
    ) -> Scene:
        classes = rng.integers(len(CLASSES), size=2)
        while is_held_out(*classes.tolist()) != (split == "val"):
            classes = rng.integers(len(CLASSES), size=2)
        ink = np.array([rng.choice(np.flatnonzero(labels == label)) for label in classes])
        ways = rng.integers(4, size=2).tolist()
        while not keeps_its_ways(places := self._places(rng, ways), ways):
            pass
        return Scene(classes, ink, places, room, ways)

    def _places(
        self, rng: np.random.Generator, ways: Sequence[int] | None = None
    ) -> Float[np.ndarray, "T 2 2"]:
        """Upper left corners of the two digits in each frame, moving in any direction or along `WAYS`."""
        room, near = np.array(self.size, float) - self.side, _NEAR * self.side
        place = rng.uniform(0, room, (2, 2))
        while (np.abs(place[1] - place[0]) < near).all():
            place = rng.uniform(0, room, (2, 2))
        angle, speed = rng.uniform(0, 2 * np.pi, 2), rng.uniform(*_SPEED, 2) * self.side
        if ways is not None:  # angles, of which that of "right" is zero
            angle = (np.array(ways) - 1) * np.pi / 2 + (angle / np.pi - 1) * SWERVE
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
    canvas: Float[np.ndarray, "T H W"], ink: UInt8[np.ndarray, "s s"], places: Float[np.ndarray, "T 2"]
) -> None:
    """Draw a digit at subpixel positions, with bilinear weights; where two overlap, the lighter one is visible."""
    corners = np.floor(places).astype(int)
    fy, fx = (places - corners).T[..., None, None]
    padded = np.pad(ink.astype(np.float32), 1)
    rows = (1 - fy) * padded[1:] + fy * padded[:-1]
    moved = (1 - fx) * rows[:, :, 1:] + fx * rows[:, :, :-1]
    for frame, image, (y, x) in zip(canvas, moved, corners.tolist(), strict=True):
        here = frame[y : y + len(image), x : x + len(image)]
        np.maximum(here, image[: here.shape[0], : here.shape[1]], out=here)
