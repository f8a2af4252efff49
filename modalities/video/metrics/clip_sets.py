"""The clips of a set used for evaluation: one per video, examined once and read again on demand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
from tqdm import tqdm

from ditmoe.modality import Samples
from ditmoe.outside import TooFewError, tell
from modalities.video.io.container import Unreadable
from modalities.video.metrics.memorisation import thumbnails
from modalities.video.metrics.motion import smoothness
from modalities.video.metrics.protocol import Protocol

Frames = UInt8[np.ndarray, "F h w 3"]
ClipSet = Samples | np.ndarray | Sequence[Any]
"""uint8 RGB (S, T, H, W, 3), or videos (T, H, W, 3) of any length and size: arrays or array-like."""

FRAMES = 4
"""Most frames of a clip that `spaced` takes."""
_NAMED = 5


@dataclass(frozen=True, eq=False)
class Clip:
    """Some frames of a video, and measurements of them.

    Attributes:
        video: an array or array-like.
        places: indices of the frames.
        digest: SHA-256 of the frames and their shape.
        size: (height, width).
        flicker: mean absolute change from frame to frame, 0 to 255.
        motion: fraction of pixels that change by more than 16 in some channel.
        jerk, warp: see `motion.smoothness`.
        small: the frames as `memorisation.thumbnails`.
    """

    video: Any
    places: Int64[np.ndarray, " F"]
    digest: bytes
    size: tuple[int, int]
    flicker: float
    motion: float
    jerk: float
    warp: float
    small: Float32[np.ndarray, "F 48"]

    def read(self) -> Frames:
        return self.video[self.places]


@dataclass(frozen=True, eq=False)
class Side:
    """The clips of a set.

    Attributes:
        clips: the clips that are evaluated.
        lossy: number of files that may be lossy; None if unknown.
        left: reason -> number of videos left out.
        missing: number of clips short of the requested number.
    """

    clips: Sequence[Clip]
    lossy: int | None = None
    left: Mapping[str, int] = field(default_factory=dict)
    missing: int = 0

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def digest(self) -> str:
        """Hash of all clips, in order."""
        return sha256(b"".join(clip.digest for clip in self.clips)).hexdigest()

    def of(self, what: str) -> Float[np.ndarray, " S"]:
        """`flicker`, `motion`, `jerk` or `warp` of each clip."""
        return np.array([getattr(clip, what) for clip in self.clips], np.float64)

    def take(self, rows: Int64[np.ndarray, " _"]) -> "Side":
        """A subset of the clips as a set of its own."""
        return Side([self.clips[i] for i in rows], self.lossy)

    def changed(self, change: Callable[[Frames], Frames]) -> "Side":
        """The same clips, with `change` applied to whole videos; only the clips are held in memory."""
        clips = []
        for clip in self.clips:
            frames = change(np.asarray(clip.video))[clip.places]
            clips += look([frames], [np.arange(len(frames))], "changed")
        return Side(clips, self.lossy)


def take(data: ClipSet, role: str, protocol: Protocol, seed: int, progress: bool = False) -> Side:
    """Take one clip per video of a set, limited to the protocol's number of videos except for the training set.

    A random start is determined by the seed and a video's first frame: equal videos give equal clips, in any order.
    Videos that are too short or unreadable are left out and counted, never replaced.

    Raises:
        ValueError: with one line, if these are not clips, or fewer than two can be used.
    """
    videos, side = checked(data, role), "generated" if role == "generated" else "reference"
    long = [video for video in videos if video.shape[0] >= protocol.span]
    if len(long) < 2:
        raise TooFewError(_too_short(videos, len(long), role, protocol))
    num = None if role == "train" else protocol.nums[side]  # a copy may be of any training clip
    order = np.arange(len(long))
    if protocol.choice == "random":
        order = np.random.default_rng([seed, len(long)]).permutation(len(long))
    chosen = np.sort(order[:num])
    places = [_places(long[i], protocol, protocol.starts[side], seed) for i in chosen]
    clips = look([long[i] for i in chosen], places, role, progress)
    if len(clips) < 2:
        raise TooFewError(f"{role} must hold at least 2 readable clips, got {len(clips)} of {len(videos)}")
    left = {
        "too short": len(videos) - len(long),
        "unreadable": getattr(data, "left_out", 0) + len(chosen) - len(clips),
        "by num": len(long) - len(chosen),
    }
    return Side(
        clips,
        getattr(data, "lossy", None),
        {reason: count for reason, count in left.items() if count},
        0 if num is None else max(0, num - len(clips)),
    )


def look(
    videos: Sequence[Any], places: Sequence[np.ndarray], role: str, progress: bool = False
) -> list[Clip]:
    """Read and measure one clip of each video; unreadable ones are named on stderr."""
    clips, failed = [], 0
    bar = tqdm(videos, desc=role, unit="clip", leave=False, mininterval=1, disable=not progress)
    for video, numbers in zip(bar, places, strict=True):
        try:
            frames = video[numbers]
        except Unreadable as error:
            failed += 1
            if failed <= _NAMED:
                tell(f"left out: {error}")
            continue
        digest = sha256(repr(frames.shape).encode() + frames.tobytes()).digest()
        clips.append(Clip(video, numbers, digest, frames.shape[1:3], *_movement(frames), thumbnails(frames)))
    return clips


def spaced(video: Any) -> Frames | list[Frames]:
    """`FRAMES` evenly spaced frames of a video, all of a shorter one; none of an unreadable one."""
    num = min(FRAMES, video.shape[0])
    step = (video.shape[0] - 1) // max(1, num - 1)
    first = (video.shape[0] - 1 - step * (num - 1)) // 2
    try:
        return video[first + step * np.arange(num, dtype=np.int64)]
    except Unreadable:  # told where clips are measured
        return []


def checked(data: ClipSet, role: str) -> list[Any]:
    """The videos of a set.

    Raises:
        ValueError: unless they are uint8 RGB, two or more.
    """
    given = data.data if isinstance(data, Samples) else data
    if isinstance(given, np.ndarray) and given.dtype != object and given.ndim != 5:
        raise ValueError(
            f"{role} must be uint8 RGB (S, T, H, W, 3), got {given.dtype} of shape {given.shape}"
        )
    videos = list(given)
    for i, video in enumerate(videos):
        kind, shape = getattr(video, "dtype", type(video).__name__), tuple(getattr(video, "shape", ()))
        if kind != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise ValueError(
                f"{role} must be uint8 RGB (S, T, H, W, 3), got {kind} of shape {shape} for clip {i}"
            )
    if len(videos) < 2:
        raise TooFewError(f"{role} must hold at least 2 clips, got {len(videos)}")
    return videos


def _places(video: Any, protocol: Protocol, start: str, seed: int) -> Int64[np.ndarray, " F"]:
    room = video.shape[0] - protocol.span + 1
    first = 0
    if start == "random" and room > 1:
        try:
            frame = video[np.zeros(1, np.int64)].tobytes()
        except Unreadable:  # reported when the clip is read
            frame = b""
        address = int.from_bytes(sha256(frame).digest()[:8], "big")
        first = int(np.random.default_rng([seed, address]).integers(room))
    return first + protocol.stride * np.arange(protocol.frames, dtype=np.int64)


def _movement(frames: Frames) -> tuple[float, float, float, float]:
    """Flicker, motion, jerk and warp; 0 if there are too few frames."""
    if len(frames) < 2:
        return 0.0, 0.0, 0.0, 0.0
    steps = np.abs(np.diff(frames.astype(np.int16), axis=0))
    return float(steps.mean()), float((steps.max(axis=-1) > 16).mean()), *smoothness(frames)


def _too_short(videos: Sequence[Any], long: int, role: str, protocol: Protocol) -> str:
    lengths = sorted({video.shape[0] for video in videos})
    got = f"{lengths[0]} to {lengths[-1]}, enough in {long}" if len(lengths) > 1 else f"{lengths[0]}"
    return (
        f"{role} must have at least {protocol.span} frames for frames={protocol.frames} stride={protocol.stride}, got "
        f"{got}"
    )
