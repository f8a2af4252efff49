"""Reads clips from videos at a given size and frame rate, with a policy for damaged files."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8

from modalities.shared.datasets import LeftOut
from modalities.shared.decode import middle
from modalities.video.data.catalogue import Clip
from modalities.video.io.container import Unreadable
from modalities.video.io.index import Index, nearest_frames, num_moments
from modalities.video.io.reader import BACKENDS, BROKEN, read_clip, read_index, read_numbers, salvaged_index

T = TypeVar("T")
POLICIES = ("error", "skip", "salvage")


@dataclass
class ClipReader:
    """Reads clips of `frames` frames; the arguments are those of `Clips`.

    Attributes:
        size: (H, W) of a clip.
        max_pixels: limit per frame; videos with larger frames count as unreadable and are not decoded.
        unreadable: name -> reason, for videos left out for at least one clip so far.
        salvaged: name -> reason, for videos of which only a part is used.

    Raises:
        ValueError: for invalid options.
    """

    size: tuple[int, int]
    frames: int
    stride: int
    policy: str
    backend: str
    hold: bool
    resample: str | None
    rate: float
    max_pixels: int
    unreadable: LeftOut[str] = field(default_factory=lambda: LeftOut("skipped unreadable video"))
    salvaged: LeftOut[str] = field(default_factory=lambda: LeftOut("salvaged part of video"))
    _indices: dict[tuple[Path, bool], Index | Unreadable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.resample not in (None, "nearest") or (
            self.resample and (self.stride != 1 or not 0 < self.rate < np.inf)
        ):
            raise ValueError(
                "resample must be null or nearest, which takes a positive rate and a stride of 1, got "
                f"{self.resample}, {self.rate} and {self.stride}"
            )
        if self.policy not in POLICIES or self.backend not in BACKENDS:
            raise ValueError(
                "policy must be error, skip or salvage, backend pyav or decord, got "
                f"{self.policy} and {self.backend}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling: a copy in a worker process reads its own indices."""
        return {**vars(self), "_indices": {}}

    @property
    def reasons(self) -> Counter[str]:
        """Number of videos left out or salvaged so far, by reason."""
        return Counter(
            [*self.unreadable.values(), *(f"{reason}, salvaged" for reason in self.salvaged.values())]
        )

    def read(self, video: Clip, place: float) -> UInt8[np.ndarray, "T H W 3"] | None:
        """Read a clip from a relative start in [0, 1) of the possible ones; None if unreadable, reported once."""
        found = self._try(video, lambda fault: self._frames(video, place, self.frames, fault))
        return None if found is None else fit(found[0], self.size)[found[1]]

    def own_size(self, video: Clip) -> tuple[int, int, int] | None:
        """Native (T, H, W) of a video, counting every `stride`-th frame; None if unreadable, reported once."""
        index = self._try(video, lambda fault: self._index(video.path, fault))
        return None if index is None else (self._room(index), index.height, index.width)

    def read_whole(
        self, video: Clip, place: float, size: tuple[int, int, int]
    ) -> UInt8[np.ndarray, "T H W 3"] | None:
        """Read T uncropped frames at (H, W) from a relative start in [0, 1); None if unreadable, reported once."""
        found = self._try(video, lambda fault: self._frames(video, place, size[0], fault))
        return None if found is None else resized(found[0], size[1:])[found[1]]

    def _try(self, video: Clip, read: Callable[[Unreadable | None], T]) -> T | None:
        """Read by the policy, which may retry with a known fault to salvage; None if unreadable."""
        try:
            try:
                return read(None)
            except Unreadable as fault:
                if self.policy != "salvage" or fault.reason not in BROKEN:
                    raise
                found = read(fault)
                self.salvaged.add(video.name, fault.reason, fault)
                return found
        except Unreadable as error:
            if self.policy == "error":
                raise
            self.unreadable.add(video.name, error.reason, error)
            return None

    def _frames(
        self, video: Clip, place: float, count: int, fault: Unreadable | None
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], Int64[np.ndarray, " T"]]:
        """The distinct frames of a clip at native size, and the indices that repeat them."""
        index, span = self._index(video.path, fault), (count - 1) * self.stride + 1
        start = int(place * (max(0, len(index) - span) + 1))
        backend = "pyav" if fault else self.backend
        there = min(count, self._room(index)) if self.hold else count
        if self.resample:
            chosen = nearest_frames(index.seconds(self.rate), place, there, self.rate)
            if len(chosen) < there:
                seconds = f"{len(chosen)} frames at {self.rate:g} a second, the clip needs {there}"
                raise Unreadable(video.path, "too short", seconds)
            each, shown = np.unique(chosen, return_inverse=True)
            frames = read_numbers(video.path, each, index=index, backend=backend)
        else:
            frames = read_clip(video.path, start, there, self.stride, index=index, backend=backend)
            shown = np.arange(len(frames))
        if len(shown) < there:
            raise Unreadable(video.path, "too short", f"{len(index)} frames decode, the clip needs {span}")
        return frames, np.concatenate([shown, shown[-1:].repeat(count - there)])

    def _room(self, index: Index) -> int:
        """Number of frames of the longest possible clip."""
        if self.resample:
            return num_moments(index.seconds(self.rate), self.rate)
        return (len(index) - 1) // self.stride + 1

    def _index(self, path: Path, fault: Unreadable | None) -> Index:
        """The index of a video. Faults of a whole file are remembered, those of a clip are not, or a clip would depend
        on which others were read before.
        """
        key = path, fault is not None
        if key not in self._indices:
            try:
                self._indices[key] = (
                    salvaged_index(path, fault, self.max_pixels)
                    if fault
                    else read_index(path, max_pixels=self.max_pixels)
                )
            except Unreadable as error:
                self._indices[key] = error
        found = self._indices[key]
        if isinstance(found, Unreadable):
            raise Unreadable(found.path, found.reason, found.detail)
        return found


def fit(frames: UInt8[np.ndarray, "T h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "T H W 3"]:
    """Resize a clip to cover `size` (H, W), bilinear and antialiased, and centre-crop."""
    scale = max(size[0] / frames.shape[1], size[1] / frames.shape[2])
    frames = frames[:, middle(frames.shape[1], scale, size[0]), middle(frames.shape[2], scale, size[1])]
    height, width = frames.shape[1:3]
    whole = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    frames = resized(frames, whole)
    top, left = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    return np.ascontiguousarray(frames[:, top : top + size[0], left : left + size[1]])


def resized(frames: UInt8[np.ndarray, "T h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "T H W 3"]:
    """Resize a clip, bilinear and antialiased."""
    if size == frames.shape[1:3]:
        return frames
    x = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 1)
    x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    return x.movedim(1, -1).numpy()
