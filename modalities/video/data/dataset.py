"""Data sets of clips: a folder of videos, read as a function of seed, epoch and number alone."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8

from ditmoe.modality import Samples, check_number
from ditmoe.outside import TooFewError, printable
from modalities.shared.captions import Captioner, Described, Labels, WrittenCaptions
from modalities.shared.datasets import SPLITS, LeftOut, check_split, first_readable, item_of, numbers
from modalities.shared.decode import middle
from modalities.shared.understood import Understood
from modalities.video.data.catalogue import Clip, Listing, list_all
from modalities.video.io.container import MOST_PIXELS, Unreadable
from modalities.video.io.index import Index, nearest_frames, num_moments
from modalities.video.io.reader import BACKENDS, BROKEN, read_clip, read_index, read_numbers, salvaged_index

T = TypeVar("T")
POLICIES = ("error", "skip", "salvage")
_CLIP, _CHOICE, _START = 2, 3, 4  # addresses of the kinds of random streams


class Clips:
    """A labelled set of clips from the videos below a folder, split into train, val and test.

    Folders of the first level are classes, without any the one class is "video"; UCF-101 works as it is. A
    video is a file, a folder of frames, or a .npy (T, H, W, 3) uint8. Where the folder has train,
    val or test in it, these are the splits and have the classes (see `list_all`). Nothing is read before
    it is asked for.

    Args:
        root: the folder.
        size: (H, W) of a clip: the shorter side is resized, the middle is taken.
        frames: T of a clip.
        stride: from one of its frames to the next in the video, exactly.
        policy: what becomes of a truncated or damaged video: "error" raises, "skip" takes the next readable
            one of its class, "salvage" takes the frames that decode. Other faults, too few frames among them,
            are errors or skipped.
        split: shares of train, val and test where no folders give them.
        backend: "pyav", or "decord" where that is installed.
        workers: threads that decode the clips of a batch; 0 decodes in the caller's.
        hold: a video of fewer frames than a clip holds its last one, and is not too short.
        resample: "nearest" takes the frames that are shown nearest to the moments of a clip, in place of `stride`, so
            that all clips have one tempo. Folders of frames and arrays have no times: they count as of that rate.
        rate: then, moments a second.
        max_megapixels: of a frame; videos of larger ones are unreadable, and not decoded.
        index: a folder in which the names of many files are kept for the next start (see `FolderIndex`).
    """

    opens: ClassVar[Sequence[str]] = ("root", "index")

    def __init__(
        self,
        root: str | PathLike | None = None,
        size: Sequence[int] = (32, 32),
        frames: int = 17,
        stride: int = 1,
        policy: str = "skip",
        split: Sequence[float] = (0.8, 0.1, 0.1),
        backend: str = "pyav",
        workers: int = 0,
        hold: bool = False,
        resample: str | None = None,
        rate: float = 8.0,
        max_megapixels: float = MOST_PIXELS / 1e6,
        index: str | PathLike | None = None,
        captions: bool = False,
    ) -> None:
        check_number("max_megapixels", max_megapixels, above=0)
        self._index_folder = None if index is None else Path(index).expanduser()
        if len(size) != 2 or min(*size, frames, stride) < 1 or workers < 0:
            got = f"{list(size)}, {frames}, {stride} and {workers}"
            raise ValueError(
                f"size must be [H, W], frames and stride at least 1 and workers at least 0, got {got}"
            )
        if resample not in (None, "nearest") or (resample and (stride != 1 or not 0 < rate < np.inf)):
            raise ValueError(
                "resample must be null or nearest, which takes a positive rate and a stride of 1, got "
                f"{resample}, {rate} and {stride}"
            )
        if policy not in POLICIES or backend not in BACKENDS:
            raise ValueError(
                f"policy must be error, skip or salvage, backend pyav or decord, got {policy} and {backend}"
            )
        self.root = builtin() if root is None else Path(root).expanduser()
        self.size, self.frames, self.stride = (int(size[0]), int(size[1])), frames, stride
        self.policy, self.parts, self.backend, self.workers = policy, tuple(split), backend, workers
        self.hold, self.resample, self.rate = hold, resample, rate
        self.captions = captions
        self.max_pixels = int(max_megapixels * 1_000_000)
        self.unreadable: LeftOut[str] = LeftOut("skipped unreadable video")
        """Name -> reason of the videos that were left out for at least one clip so far."""
        self.salvaged: LeftOut[str] = LeftOut("salvaged part of video")
        """Name -> reason of those of which only a part is used."""
        self._indices: dict[tuple[Path, bool], Index | Unreadable] = {}

    @property
    def reasons(self) -> Counter[str]:
        """How many videos were left out or salvaged so far, by reason."""
        return Counter(
            [*self.unreadable.values(), *(f"{reason}, salvaged" for reason in self.salvaged.values())]
        )

    @cached_property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return self._listing.classes

    def understood(self) -> Understood:
        """What was understood of the folder."""
        found = self._listing.understood(self.root)
        return found.with_captions if self.captions else found

    def count(self, split: str) -> int:
        """Videos of a split."""
        check_split(split)
        return len(self._splits[split])

    def split(self, name: str) -> Sequence[Clip]:
        """The videos of a split, by name."""
        check_split(name)
        if not (videos := self._splits[name]):
            counts = ", ".join(f"{split} {len(self._splits[split])}" for split in SPLITS)
            raise TooFewError(
                f"{printable(self.root)} must hold videos for {name} (set their shares by split), got {counts}"
            )
        return videos

    def labels(self, split: str) -> Int64[np.ndarray, " S"]:
        """Class index of each video of a split."""
        return np.array([self.classes.index(video.category) for video in self.split(split)], np.int64)

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[UInt8[np.ndarray, "B T H W 3"], Labels]:
        """Training clips and labels: a function of its arguments alone.

        Clip i of this call is number (step * world + rank) * size + i of a stream that goes through a new
        permutation of the videos each epoch.
        """
        count, turns = len(self.split("train")), numbers(size, step, rank, world)
        made = self.parallel(lambda n: self.clip(seed, *divmod(n, count)), turns)
        said = self.said([video for video, _ in made], seed, turns)
        return np.stack([clip for _, clip in made]), said

    def said(self, videos: Sequence[Clip], seed: int, turns: Sequence[int]) -> Labels:
        """The labels, or what is said, of videos for numbers of a seed's stream."""
        labels = np.array([self.classes.index(video.category) for video in videos], np.int64)
        if not self.captions:
            return labels
        each = zip(videos, turns, strict=True)
        return Described(labels, [self.captioner.drawn(video, seed, n) for video, n in each])

    @cached_property
    def captioner(self) -> Captioner[Clip]:
        """The captions of videos."""
        return Captioner(self._written, attrgetter("category"))

    @cached_property
    def _captions_of(self) -> WrittenCaptions:
        return WrittenCaptions(self.root)

    def _written(self, clip: Clip) -> list[str]:
        return self._captions_of(clip.path)

    def captions_of_split(self, split: str) -> Iterator[str]:
        """Each caption of a split once."""
        check_split(split)
        return self.captioner.distinct(self._splits[split])

    def clip(self, seed: int, epoch: int, number: int) -> tuple[Clip, UInt8[np.ndarray, "T H W 3"]]:
        """The video and frames of clip `number` of an epoch of training; its start is drawn uniformly.

        A video that cannot be read gives way to the next of its class, each of which is tried once.
        """
        videos = self.split("train")
        chosen, place = pick(len(videos), seed, epoch * len(videos) + number)
        category = videos[chosen].category
        found = first_readable(videos, chosen, lambda video: self._read(video, place), attrgetter("category"))
        if found is None:
            raise self._nothing_readable(f"train/{category}")
        return found

    def views(self, videos: Sequence[Clip], starts: int) -> list[UInt8[np.ndarray, "V T H W 3"] | None]:
        """Clips of each video from `starts` places, evenly from its first frame to its last; None for an unreadable
        one.
        """
        places = [(video, (i + 0.5) / starts) for video in videos for i in range(starts)]
        read = self.parallel(lambda at: self._read(*at), places)
        each = [read[i : i + starts] for i in range(0, len(read), starts)]
        return [None if any(clip is None for clip in clips) else np.stack(clips) for clips in each]

    def reference(self, split: str, count: int | None = None, seed: int | None = None) -> Samples:
        """One clip of each video of a split: from its start, or with a `seed` from one drawn for its name.

        `count` takes that many videos, chosen by the seed. Unreadable ones are left out and reported, never
        replaced, so that there may be fewer.
        """
        videos = self.split(split)
        if count is not None and count < len(videos):
            order = np.random.default_rng([seed or 0, _CHOICE]).permutation(len(videos))
            videos = [videos[i] for i in sorted(order[:count])]
        read = self.parallel(lambda video: self._read(video, _place(video.name, seed)), videos)
        kept = [(video, frames) for video, frames in zip(videos, read, strict=True) if frames is not None]
        if not kept:
            raise self._nothing_readable(split)
        shown, frames = zip(*kept, strict=True)
        labels, asked = np.array([self.classes.index(video.category) for video in shown], np.int64), None
        if self.captions:
            asked = Described(labels, [self.captioner.first(video) for video in shown]).asked
        return Samples(np.stack(frames), labels, [video.name for video in shown], asked)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy in another process, which has others beside it: it decodes in its own thread."""
        return {**vars(self), "workers": 0, "_indices": {}}

    def parallel(self, function: Callable, items: Iterable) -> list:
        """Results in order, from as many threads as there are workers."""
        if not self.workers:
            return [function(item) for item in items]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(function, items))

    def own_size(self, video: Clip) -> tuple[int, int, int] | None:
        """(T, H, W) of a video as it is, every `stride`-th frame counted; None where it cannot be read, told once."""
        index = self._try(video, lambda fault: self._index(video.path, fault))
        return None if index is None else (self._room(index), index.height, index.width)

    def read_whole(
        self, video: Clip, place: float, size: tuple[int, int, int]
    ) -> UInt8[np.ndarray, "T H W 3"] | None:
        """T frames from a place in [0, 1), all of each, at (H, W); None where they cannot be read, told once."""
        found = self._try(video, lambda fault: self._frames(video, place, size[0], fault))
        return None if found is None else resized(found[0], size[1:])[found[1]]

    def _read(self, video: Clip, place: float) -> np.ndarray | None:
        """A clip from a place in [0, 1) of where it can start; None where it cannot be read, told once."""
        found = self._try(video, lambda fault: self._frames(video, place, self.frames, fault))
        return None if found is None else fit(found[0], self.size)[found[1]]

    def _try(self, video: Clip, read: Callable[[Unreadable | None], T]) -> T | None:
        """What is read by the policy, which may be told of a fault and then salvages; None where it cannot be read."""
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
        """Frames of a clip, each of them once, as large as they are, and which of them are shown."""
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
        """Frames of the longest clip."""
        if self.resample:
            return num_moments(index.seconds(self.rate), self.rate)
        return (len(index) - 1) // self.stride + 1

    def _index(self, path: Path, fault: Unreadable | None) -> Index:
        """The index of a video. A fault of the whole file is remembered, of a clip never: a clip would depend
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

    def _nothing_readable(self, place: str) -> ValueError:
        counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        return ValueError(f"{printable(self.root)} must hold readable videos in {place}, got none: {counts}")

    @cached_property
    def _listing(self) -> Listing:
        return list_all(self.root, self.parts, self._index_folder)

    @cached_property
    def _splits(self) -> dict[str, list[Clip]]:
        return {split: [clip for clip in self._listing.clips if clip.split == split] for split in SPLITS}


def builtin() -> Path:
    """What takes the place of a folder where none is given: nothing yet."""
    raise ValueError("root must be given: a folder of videos")


def fit(frames: UInt8[np.ndarray, "T h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "T H W 3"]:
    """Resize a clip until it just covers `size` (H, W), bilinear and antialiased, and take its middle."""
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


def _place(name: str, seed: int | None) -> float:
    """Where the reference clip of a video starts, whatever other videos there are."""
    if seed is None:
        return 0.0
    return float(np.random.default_rng([seed, _START, *name.encode("utf-8", "surrogateescape")]).random())


def pick(length: int, seed: int, number: int) -> tuple[int, float]:
    """Which of `length` videos is number `number` of the training stream, and from where in it, in [0, 1)."""
    rng = np.random.default_rng([seed, _CLIP, *divmod(number, length)])
    return item_of(length, seed, number), float(rng.random())


def pick_view(length: int, seed: int, number: int, starts: int) -> tuple[int, int]:
    """Which of `length` videos is number `number` of the training stream, and which of its `starts` clips on a disk."""
    index, place = pick(length, seed, number)
    return index, int(place * starts)
