"""Windows of frames that are sampled together with given frames, and the positions of these."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8

from ditmoe.outside import check_number
from modalities.video.given_clip import MOST_FRAMES, Clip

if TYPE_CHECKING:
    from modalities.video.adapter import Video


@dataclass(frozen=True)
class Window:
    """Frames that are sampled together, and how they enter the result.

    Attributes:
        frames: the given frames in place, the others filled with the nearest given frame.
        known: which pixels are given.
        new: which frames of the window belong to the result.
        before, after: frames of the result outside the window.
        context, latents: if one window is not enough, latent frames that each later window shares with the earlier one,
            and total latent frames.
    """

    frames: Clip
    known: Bool[np.ndarray, "T H W"]
    new: slice = field(default_factory=lambda: slice(None))
    before: UInt8[np.ndarray, "T0 H W 3"] | None = None
    after: UInt8[np.ndarray, "T2 H W 3"] | None = None
    context: int = 0
    latents: int = 0


class Planner:
    """Plans windows for a codec and the clip length of training.

    Args:
        frames: length of the result, None for that of training.
    """

    def __init__(self, modality: "Video", frames: int | None) -> None:
        self.trained, self.frames = modality.frames, frames
        self.group = int(getattr(modality.codec, "group", modality.codec.stride[0]))
        self.per_cell = int(modality.codec.stride[0])

    def continued(self, clip: Clip, keep: Any) -> Window:
        """Extend some frames of a clip backwards or forwards."""
        first, end, backwards = self.kept(clip, keep)
        total = self.trained if self.frames is None else self.frames
        num = end - first
        if backwards:
            start = total - (len(clip) - first)
            if start < 0:
                raise ValueError(
                    f"frames must be at least the {len(clip) - first} that are given, got {total}"
                )
            self.check_tail(len(clip) - end == 0, num, total)
            return self.placed(clip[first:end], start, total)
        if end > total or (end == total and not first):
            raise ValueError(
                f"frames must be more than the {end} that are given, got {total}: say frames={self.legal(end)}"
            )
        self.check_head(first, end)
        if total <= self.trained or first:
            return self.placed(clip[first:end], first, total)
        context = min(end, self.head(self.trained // 2 + 1))
        new = total - end
        if new % self.group:
            more = end + -(-new // self.group) * self.group
            raise ValueError(
                f"frames must be the {end} given ones and a multiple of {self.group}, such as {more}"
            )
        window = min(self.trained, context + new)
        placed = self.placed(clip[end - context : end], 0, window)
        cells = self.cells(context)
        return Window(
            placed.frames,
            placed.known,
            slice(context, None),
            clip[:end],
            context=cells,
            latents=cells + new // self.per_cell,
        )

    def joined(self, a: Clip, b: UInt8[np.ndarray, "T2 H W 3"], new: Any, word: str) -> Window:
        """Generate frames from the end of one clip to the beginning of another."""
        check_number(word, new, 1, MOST_FRAMES, whole=True)
        if new % self.group:
            near = max(self.group, new // self.group * self.group)
            latents = "a latent" if self.group == self.per_cell else f"{self.group // self.per_cell} latents"
            raise ValueError(
                f"{word} must be a multiple of the {self.group} frames of {latents}, such as {near}, got {new}"
            )
        room = max(2, (self.trained - 1 - new) // self.group)
        tail = min(max(1, room // 2), len(b) // self.group)
        if tail < 1:
            raise ValueError(f"{word} needs clips of at least {self.group} frames, got {len(b)}")
        head = self.head(min(len(a), 1 + self.group * max(0, room - tail)))
        frames = np.concatenate([a[-head:], np.repeat(a[-1:], new // 2, 0), np.repeat(b[:1], new - new // 2, 0),
                                 b[: tail * self.group]])  # fmt: skip
        known = np.ones(frames.shape[:3], bool)
        known[head : head + new] = False
        after = None if word == "loop" else b
        return Window(frames, known, slice(head, head + new), a, after)

    def changed(self, clip: Clip, keep: Any, strength: float | None) -> Window:
        """A clip at its own length, all of it known unless a strength changes it."""
        if keep not in (None, "all"):
            raise ValueError(f"keep must be all together with mask or strength, got {keep}")
        if (len(clip) - 1) % self.group:
            clip = clip[: self.head(len(clip))]
        known = np.full(clip.shape[:3], strength is None)
        return Window(clip, known)

    def kept(self, clip: Clip, keep: Any) -> tuple[int, int, bool]:
        """Range of kept frames of the clip, and whether it is placed at the end of the result."""
        keep = [0, None] if keep is None else keep
        whole = isinstance(keep, Sequence) and not isinstance(keep, str) and len(keep) == 2
        if not whole or not all(n is None or type(n) is int for n in keep):
            raise ValueError(
                f"keep must be [first,end] frames, such as [0,9] or [-12,null], or all, got {keep}"
            )
        first, end, _ = slice(*keep).indices(len(clip))
        longest, told = max(abs(n or 0) for n in keep), str(list(keep)).replace("None", "null")
        if longest > len(clip):
            raise ValueError(f"keep={told} needs a clip of {longest} frames, got {len(clip)}")
        if end <= first:
            raise ValueError(f"keep={told} keeps no frame of {len(clip)}")
        return first, end, keep[0] is not None and keep[0] < 0

    def placed(self, kept: Clip, start: int, total: int) -> Window:
        """Put frames in place, and fill the others with the nearest."""
        if (total - 1) % self.group:
            raise ValueError(
                f"frames must be 1 + a multiple of {self.group}, got {total}: say {self.legal(total)}"
            )
        numbers = np.clip(np.arange(total) - start, 0, len(kept) - 1)
        known = np.zeros((total, *kept.shape[1:3]), bool)
        known[start : start + len(kept)] = True
        return Window(kept[numbers], known)

    def check_head(self, first: int, end: int) -> None:
        """Raise ValueError unless frames from the beginning of the result fill whole latent frames."""
        if first and (first - 1) % self.group:
            raise ValueError(f"keep must begin at 0 or at 1 + a multiple of {self.group}, got {first}")
        if (end - 1) % self.group:
            below = self.head(end)
            raise ValueError(
                f"keep must end at 1 + a multiple of {self.group} frames, {below} or {below + self.group}, got {end}"
            )

    def check_tail(self, at_end: bool, num: int, total: int) -> None:
        """Raise ValueError unless frames up to the end of the result fill whole latent frames."""
        if (total - 1) % self.group == 0 and (not at_end or num % self.group):
            below = max(1, num // self.group) * self.group
            raise ValueError(
                f"keep must be a multiple of {self.group} frames up to the end, [-{below},null] or "
                f"[-{below + self.group},null], got {num}{'' if at_end else ' before it'}"
            )

    def head(self, num: int) -> int:
        """Round down a number of frames from the beginning to whole latent frames."""
        return 1 + (num - 1) // self.group * self.group

    def legal(self, num: int) -> int:
        """The next valid clip length."""
        return 1 + -(-num // self.group) * self.group

    def cells(self, num: int) -> int:
        """Number of latent frames for so many frames from the beginning."""
        return 1 + (num - 1) // self.per_cell
