"""Clips and images at native lengths and sizes."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from modalities.latent import Packing
from modalities.latent.packing import native_size
from modalities.shared.captions import Described, Labels
from modalities.video.data.dataset import Clips
from modalities.video.data.moving_digits import SMALLEST, MovingDigits

MOVING = 512
"""Built-in clips per epoch; each epoch has new ones."""
PROPORTIONS = ((1, 1), (3, 4), (4, 3), (1, 2), (2, 1))
_CLIP = 8  # address of a random stream


@dataclass(frozen=True)
class Entry:
    """One training sample: a built-in clip (None), a video or an image, and the (T, H, W) it is resized to."""

    source: Any
    label: int
    size: tuple[int, int, int]
    is_picture: bool = False


class NativeClips:
    """Packed training samples of different lengths and sizes.

    Args:
        data: the clips.
        pictures: images used as clips of one frame, or None.
        shape: gives the latent shape of a size in pixels; refuses invalid sizes.
        stride: frames and pixels per latent cell.
        patch_size: latent cells of a token.
        most: (T, H, W): the most frames, and the largest area H W.
        budget: the most tokens of a packed row.
    """

    def __init__(
        self,
        data: Clips | MovingDigits,
        pictures: Any,
        shape: Callable[[Sequence[int]], Sequence[int]],
        stride: Sequence[int],
        patch_size: Sequence[int],
        most: tuple[int, int, int],
        budget: int,
    ) -> None:
        self.data, self.pictures, self.shape, self.patch_size = data, pictures, shape, tuple(patch_size)
        self.unit, self.most = [s * c for s, c in zip(stride[1:], patch_size[1:], strict=True)], most
        self.short: list[str] = []
        """Names of the samples that have fewer frames than a token."""
        self.entries = [*self._clips(), *self._pictures()]
        self.packing = Packing([self.tokens(entry.size) for entry in self.entries], budget)

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling: a copy in a worker process only reads batches and needs no codec."""
        return {name: value for name, value in vars(self).items() if name != "shape"}

    def told(self) -> str:
        """A line on the samples and how full the rows are."""
        sizes, less = {entry.size for entry in self.entries}, ""
        if self.short:
            less = (
                f", without {len(self.short)} that have fewer frames than a token, the first: {self.short[0]}"
            )
        return f"{len(self.entries)} clips of {len(sizes)} lengths and sizes{less}, {self.packing.told()}"

    def tokens(self, size: Sequence[int]) -> int:
        """Number of tokens of a sample of this size in pixels."""
        return math.prod(n // c for n, c in zip(self.shape(size)[1:], self.patch_size, strict=True))

    def batch(
        self, seed: int, row: int
    ) -> tuple[list[UInt8[np.ndarray, "_ _ _ 3"]], Labels, Bool[np.ndarray, " B"]]:
        """Samples, labels, and which are images; unreadable ones are left out."""
        each = self.data.parallel if isinstance(self.data, Clips) else map
        for members in self.packing.rows_from(seed, row):
            draws = [(self.entries[n % len(self.entries)], n) for n in members]
            read = each(lambda drawn: (*drawn, *self._read(drawn[0], seed, drawn[1])), draws)
            kept = [one for one in read if one[2] is not None]
            if kept:
                entries, turns, clips, labels = zip(*kept, strict=True)
                said: Labels = (found := np.array(labels, np.int64))
                if self.data.captions:
                    told = [self._told(entry, seed, n) for entry, n in zip(entries, turns, strict=True)]
                    said = Described(found, told)
                return list(clips), said, np.array([entry.is_picture for entry in entries])
        raise ValueError("there must be readable clips for train, got none")

    def _read(self, entry: Entry, seed: int, number: int) -> tuple[np.ndarray | None, int]:
        if entry.is_picture:
            image = self.pictures.read_whole(entry.source, entry.size[1:], seed, number)
            return None if image is None else image[None], entry.label
        if isinstance(self.data, MovingDigits):
            return self._moving_in(entry).clip("train", seed, number)
        place = float(np.random.default_rng([seed, _CLIP, number]).random())
        return self.data.reader.read_whole(entry.source, place, entry.size), entry.label

    def _told(self, entry: Entry, seed: int, number: int) -> str:
        """The caption of a sample."""
        if isinstance(self.data, MovingDigits) and not entry.is_picture:
            return self._moving_in(entry).caption("train", seed, number)
        of: Any = self.pictures if entry.is_picture else self.data
        return of.said([entry.source], seed, [number]).captions[0]

    def _moving_in(self, entry: Entry) -> MovingDigits:
        """Built-in clips of an entry's size."""
        frames, *size = entry.size
        data: Any = self.data
        return MovingDigits(size, frames, data.stride, data.side, data.captions)

    def _clips(self) -> list[Entry]:
        if isinstance(self.data, MovingDigits):
            made = self._made((None, 0, own, False) for own in self._moving(self.data.side))
            return [entry for entry in made if min(entry.size[1:]) >= SMALLEST]  # too narrow for digits
        videos, labels = self.data.split("train"), self.data.labels("train").tolist()
        sizes = self.data.parallel(self.data.reader.own_size, videos)
        found = zip(videos, labels, sizes, strict=True)
        return self._made((video, label, size, False) for video, label, size in found if size is not None)

    def _moving(self, side: int) -> list[tuple[int, int, int]]:
        """Lengths and sizes of the built-in clips, with the area of `size` and several aspect ratios."""
        rng = np.random.default_rng(0)
        most, area, made = self.most[0], self.most[1] * self.most[2], []
        for _ in range(MOVING):
            a, b = PROPORTIONS[rng.integers(len(PROPORTIONS))]
            scale = max(math.sqrt(area / (a * b)), 2 * side / min(a, b))
            made.append((int(rng.integers(1, most + 1)), round(a * scale), round(b * scale)))
        return made

    def _pictures(self) -> list[Entry]:
        if self.pictures is None:
            return []
        return self._made((p, p.label, (1, *size), True) for p, size in self.pictures.own_sizes())

    def _made(self, found: Iterable[tuple[Any, int, tuple[int, int, int], bool]]) -> list[Entry]:
        """Entries from sources, labels, native sizes, and which are images."""
        entries = []
        for source, label, own, is_picture in found:
            if (size := self._fitted(*own)) is not None:
                entries.append(Entry(source, label, size, is_picture))
            elif source is not None:
                self.short.append(source.name)
        return entries

    def _fitted(self, frames: int, height: int, width: int) -> tuple[int, int, int] | None:
        """The size that a sample is resized to: as many frames as fit, of `native_size`; None if none fit."""
        size = native_size((height, width), self.unit, self.most[1] * self.most[2])
        for length in range(min(frames, self.most[0]), 0, -1):
            try:
                if not self.shape((length, *size))[1] % self.patch_size[0]:
                    return length, *size
            except ValueError:
                continue
        return None
