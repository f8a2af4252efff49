"""Video data sets: clips of a folder of videos, deterministic in seed, epoch and index."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

from ditmoe.modality import Samples, check_number
from ditmoe.outside import TooFewError, at_home, printable
from modalities.shared.captions import Captioner, Described, Labels, WrittenCaptions
from modalities.shared.datasets import SPLITS, check_split, first_readable, item_of, numbers
from modalities.shared.understood import Understood
from modalities.video.data.catalogue import Clip, Listing, list_all
from modalities.video.data.clip_reader import ClipReader
from modalities.video.io.container import MOST_PIXELS

_CLIP, _CHOICE, _START = 2, 3, 4  # addresses of the kinds of random streams


class Clips:
    """A labelled set of clips from the videos below a folder, split into train, val and test.

    Top-level folders are classes, without any the one class is "video"; UCF-101 works as it is. A video is a file, a
    folder of frames, or a .npy (T, H, W, 3) uint8. Folders named train, val or test are splits, with the classes below
    them (see `list_all`). Files are read lazily.

    Args:
        root: the folder.
        size: (H, W) of a clip, resized and centre-cropped.
        frames: T of a clip.
        stride: exact distance between its frames in the video.
        policy: treatment of truncated or damaged videos: "error" raises, "skip" takes the next readable one of the
            class, "salvage" takes the frames that decode. Other faults, such as too few frames, are errors or skipped.
        split: shares of train, val and test if no folders give them.
        backend: "pyav", or "decord" if installed.
        workers: threads that decode the clips of a batch; 0 decodes in the calling thread.
        hold: pad a video shorter than a clip by repeating its last frame, instead of rejecting it.
        resample: "nearest" takes the frames nearest to the sampling times of a clip, in place of `stride`, so that all
            clips have the same frame rate. Folders of frames and arrays have no timestamps: they count as of that rate.
        rate: with `resample`, frames per second.
        max_megapixels: limit per frame; videos with larger frames count as unreadable and are not decoded.
        index: a folder to cache the names of many files for the next start (see `FolderIndex`).
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
        self._index_folder = None if index is None else at_home(index)
        if len(size) != 2 or min(*size, frames, stride) < 1 or workers < 0:
            got = f"{list(size)}, {frames}, {stride} and {workers}"
            raise ValueError(
                f"size must be [H, W], frames and stride at least 1 and workers at least 0, got {got}"
            )
        self.root = builtin() if root is None else at_home(root)
        max_pixels = int(max_megapixels * 1_000_000)
        self.reader = ClipReader(
            (int(size[0]), int(size[1])), frames, stride, policy, backend, hold, resample, rate, max_pixels
        )
        self.unreadable, self.salvaged = self.reader.unreadable, self.reader.salvaged
        self.parts, self.workers, self.captions = tuple(split), workers, captions

    @cached_property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return self._listing.classes

    def understood(self) -> Understood:
        """How the folder was interpreted."""
        found = self._listing.understood(self.root)
        return found.with_captions if self.captions else found

    def count(self, split: str) -> int:
        """Number of videos in a split."""
        check_split(split)
        return len(self._splits[split])

    def split(self, name: str) -> Sequence[Clip]:
        """The videos of a split, sorted by name."""
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
        """Training clips and labels: deterministic in the arguments.

        Clip i has index (step * world + rank) * size + i in a stream with a new permutation of the videos each epoch.
        """
        count, turns = len(self.split("train")), numbers(size, step, rank, world)
        made = self.parallel(lambda n: self.clip(seed, *divmod(n, count)), turns)
        said = self.said([video for video, _ in made], seed, turns)
        return np.stack([clip for _, clip in made]), said

    def said(self, videos: Sequence[Clip], seed: int, turns: Sequence[int]) -> Labels:
        """The labels of videos, with captions if used, for indices of a seed's stream."""
        labels = np.array([self.classes.index(video.category) for video in videos], np.int64)
        if not self.captions:
            return labels
        each = zip(videos, turns, strict=True)
        return Described(labels, [self.captioner.drawn(video, seed, n) for video, n in each])

    @cached_property
    def captioner(self) -> Captioner[Clip]:
        """Gives the captions of videos."""
        return Captioner(self._written, attrgetter("category"))

    @cached_property
    def _captions_of(self) -> WrittenCaptions:
        return WrittenCaptions(self.root)

    def _written(self, clip: Clip) -> list[str]:
        return self._captions_of(clip.path)

    def captions_of_split(self, split: str) -> Iterator[str]:
        """The distinct captions of a split."""
        check_split(split)
        return self.captioner.distinct(self._splits[split])

    def clip(self, seed: int, epoch: int, number: int) -> tuple[Clip, UInt8[np.ndarray, "T H W 3"]]:
        """The video and frames of clip `number` of a training epoch, from a uniformly random start.

        An unreadable video is replaced by the next of its class, each of which is tried once.
        """
        videos = self.split("train")
        chosen, place = pick(len(videos), seed, epoch * len(videos) + number)
        category = videos[chosen].category
        found = first_readable(
            videos, chosen, lambda video: self.reader.read(video, place), attrgetter("category")
        )
        if found is None:
            raise self._nothing_readable(f"train/{category}")
        return found

    def views(self, videos: Sequence[Clip], starts: int) -> list[UInt8[np.ndarray, "V T H W 3"] | None]:
        """Clips of each video from `starts` evenly spaced starts, from the first to the last possible; None for an
        unreadable video.
        """
        places = [(video, (i + 0.5) / starts) for video in videos for i in range(starts)]
        read = self.parallel(lambda at: self.reader.read(*at), places)
        each = [read[i : i + starts] for i in range(0, len(read), starts)]
        return [None if any(clip is None for clip in clips) else np.stack(clips) for clips in each]

    def reference(self, split: str, count: int | None = None, seed: int | None = None) -> Samples:
        """One clip of each video of a split: from its start, or with a `seed` from a random start for its name.

        `count` takes that many videos, chosen by the seed. Unreadable ones are left out and reported, never replaced,
        so there may be fewer.
        """
        videos = self.split(split)
        if count is not None and count < len(videos):
            order = np.random.default_rng([seed or 0, _CHOICE]).permutation(len(videos))
            videos = [videos[i] for i in sorted(order[:count])]
        read = self.parallel(lambda video: self.reader.read(video, _place(video.name, seed)), videos)
        kept = [(video, frames) for video, frames in zip(videos, read, strict=True) if frames is not None]
        if not kept:
            raise self._nothing_readable(split)
        shown, frames = zip(*kept, strict=True)
        labels, asked = np.array([self.classes.index(video.category) for video in shown], np.int64), None
        if self.captions:
            asked = Described(labels, [self.captioner.first(video) for video in shown]).asked
        return Samples(np.stack(frames), labels, [video.name for video in shown], asked)

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling: a copy in a worker process decodes in one thread."""
        return {**vars(self), "workers": 0}

    def parallel(self, function: Callable, items: Iterable) -> list:
        """Results in order, from `workers` threads."""
        if not self.workers:
            return [function(item) for item in items]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(function, items))

    def _nothing_readable(self, place: str) -> ValueError:
        counts = ", ".join(f"{count} {reason}" for reason, count in self.reader.reasons.most_common())
        return ValueError(f"{printable(self.root)} must hold readable videos in {place}, got none: {counts}")

    @cached_property
    def _listing(self) -> Listing:
        return list_all(self.root, self.parts, self._index_folder)

    @cached_property
    def _splits(self) -> dict[str, list[Clip]]:
        return {split: [clip for clip in self._listing.clips if clip.split == split] for split in SPLITS}


def builtin() -> Path:
    """The default folder if none is given: there is none yet."""
    raise ValueError("root must be given: a folder of videos")


def _place(name: str, seed: int | None) -> float:
    """Relative start of the reference clip of a video, independent of other videos."""
    if seed is None:
        return 0.0
    return float(np.random.default_rng([seed, _START, *name.encode("utf-8", "surrogateescape")]).random())


def pick(length: int, seed: int, number: int) -> tuple[int, float]:
    """The video at index `number` of the training stream, and its relative start in [0, 1)."""
    rng = np.random.default_rng([seed, _CLIP, *divmod(number, length)])
    return item_of(length, seed, number), float(rng.random())


def pick_view(length: int, seed: int, number: int, starts: int) -> tuple[int, int]:
    """The video at index `number` of the training stream, and which of its `starts` clips on disk."""
    index, place = pick(length, seed, number)
    return index, int(place * starts)
