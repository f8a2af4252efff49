"""Clips of which a part is given: continued, preceded, connected, looped, filled in, changed.

Latents group frames: the first stands alone, then so many at a time. What is given must cover whole groups, and what
comes after something new cannot decode to itself, since decoders read backwards in time: the person's own frames are
put back in the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ditmoe.given import Given, Parts
from ditmoe.outside import check_number
from modalities.latent.given import hole_of, known_cells, marks_of, read_picture, shown
from modalities.shared.decode import STILLS
from modalities.video.data.dataset import fit
from modalities.video.io.index import nearest_frames, num_moments
from modalities.video.io.reader import read_clip, read_index, read_numbers
from modalities.video.seam import smooth_seams

if TYPE_CHECKING:
    from modalities.video.adapter import Video

Clip = UInt8[np.ndarray, "T H W 3"]
WORDS: Mapping[str, str] = {
    "keep": "[first,end) frames of a clip, negative ones from its end, which then is the end of the result; or all",
    "between": "frames that connect two clips",
    "loop": "frames that lead from the end of a clip to its beginning",
    "mask": "a picture, white where each frame is to be drawn anew",
}
MOST_FRAMES = 4096
"""Of what is given, and of what is to lie between."""
GREY = 128
"""Frames that are to be drawn, where a person looks at what was given."""


@dataclass(frozen=True)
class Window:
    """Frames that are drawn together, and what becomes of them.

    Attributes:
        frames: with what is given in its place, the rest filled with the given frame that is nearest.
        known: which pixels are given.
        new: the frames of it that are of the result.
        before, after: frames of the result that stay out of it.
        context, latents: latent frames that later windows see of the earlier, and how many there are in all, where one
            window is not enough.
    """

    frames: Clip
    known: Bool[np.ndarray, "T H W"]
    new: slice = field(default_factory=lambda: slice(None))
    before: UInt8[np.ndarray, "T0 H W 3"] | None = None
    after: UInt8[np.ndarray, "T2 H W 3"] | None = None
    context: int = 0
    latents: int = 0


def parts(
    modality: "Video",
    given: Any,
    shape: Mapping[str, Any],
    strength: float | None,
    keep: Any,
    between: int | None,
    loop: int | None,
    mask: Any,
) -> Parts:
    """What `Video.parts` says."""
    several = isinstance(given, list | tuple)
    names = list(given) if several else [given]
    size, told = tuple(shape.get("size") or modality.size), list[str]()
    clips = [read(modality, name, size, told) for name in names]
    if (len(clips) == 2) != (between is not None) or len(clips) not in (1, 2):
        raise ValueError(
            "between=8 connects two clips, given=[a.mp4,b.mp4]: one clip is continued by frames=, or loop="
        )
    if sum(word is not None for word in (keep, between, loop)) > 1:
        raise ValueError("only one of keep, between and loop can be said of what is given")
    plan = Planner(modality, shape.get("frames"))
    if between is not None or loop is not None:
        window = plan.joined(
            clips[0], clips[-1], between if loop is None else loop, "between" if loop is None else "loop"
        )
    elif mask is not None or strength is not None or keep == "all":
        window = plan.changed(clips[0], keep, strength)
        if (left := len(clips[0]) - len(window.frames)) > 0:
            told.append(f"{shown(names[0])}: without its last {left} frames, which fill no latent")
    else:
        window = plan.continued(clips[0], keep)
    known = window.known
    if mask is not None:
        hole = hole_of(read_picture(mask), size, mask)
        known = known & ~hole
        if strength is None:  # what is to be forgotten must not be seen around the hole either
            window = replace(window, frames=blanked(window.frames, hole))
    if known.all():
        raise ValueError(
            f"{shown(names[0])} leaves nothing to draw: say frames= for more than {len(window.frames)}, keep=, "
            "mask= or strength="
        )
    return finished(modality, window, known, strength, told)


class Planner:
    """Which frames are drawn together, for a codec and a length that training saw.

    Args:
        frames: that the result is to have, None for what training saw.
    """

    def __init__(self, modality: "Video", frames: int | None) -> None:
        self.trained, self.frames = modality.frames, frames
        self.group = int(getattr(modality.codec, "group", modality.codec.stride[0]))
        self.per_cell = int(modality.codec.stride[0])

    def continued(self, clip: Clip, keep: Any) -> Window:
        """Some frames of a clip, and what comes before or after them."""
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
            None,
            cells,
            cells + new // self.per_cell,
        )

    def joined(self, a: Clip, b: UInt8[np.ndarray, "T2 H W 3"], new: Any, word: str) -> Window:
        """Frames from the end of one clip to the beginning of another."""
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
        """A clip as it is, all of which is given unless a strength changes it."""
        if keep not in (None, "all"):
            raise ValueError(f"keep must be all together with mask or strength, got {keep}")
        if (len(clip) - 1) % self.group:
            clip = clip[: self.head(len(clip))]
        known = np.full(clip.shape[:3], strength is None)
        return Window(clip, known)

    def kept(self, clip: Clip, keep: Any) -> tuple[int, int, bool]:
        """First and end of what is kept, counted in the clip, and whether it is placed from the end."""
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
        """Frames in their place, those beside them filled with the nearest."""
        if (total - 1) % self.group:
            raise ValueError(
                f"frames must be 1 + a multiple of {self.group}, got {total}: say {self.legal(total)}"
            )
        numbers = np.clip(np.arange(total) - start, 0, len(kept) - 1)
        known = np.zeros((total, *kept.shape[1:3]), bool)
        known[start : start + len(kept)] = True
        return Window(kept[numbers], known)

    def check_head(self, first: int, end: int) -> None:
        """Raises ValueError, unless frames from the beginning of the result fill latents."""
        if first and (first - 1) % self.group:
            raise ValueError(f"keep must begin at 0 or at 1 + a multiple of {self.group}, got {first}")
        if (end - 1) % self.group:
            below = self.head(end)
            raise ValueError(
                f"keep must end at 1 + a multiple of {self.group} frames, {below} or {below + self.group}, got {end}"
            )

    def check_tail(self, at_end: bool, num: int, total: int) -> None:
        """Raises ValueError, unless frames up to the end of the result fill latents."""
        if (total - 1) % self.group == 0 and (not at_end or num % self.group):
            below = max(1, num // self.group) * self.group
            raise ValueError(
                f"keep must be a multiple of {self.group} frames up to the end, [-{below},null] or "
                f"[-{below + self.group},null], got {num}{'' if at_end else ' before it'}"
            )

    def head(self, num: int) -> int:
        """So many frames from the beginning, or a few less, that fill latents."""
        return 1 + (num - 1) // self.group * self.group

    def legal(self, num: int) -> int:
        """The next number of frames that a clip may have."""
        return 1 + -(-num // self.group) * self.group

    def cells(self, num: int) -> int:
        """Latent frames of so many frames from the beginning."""
        return 1 + (num - 1) // self.per_cell


def finished(
    modality: "Video",
    window: Window,
    known: Bool[np.ndarray, "T H W"],
    strength: float | None,
    told: list[str],
) -> Parts:
    """A window for the sampler, and its way back into the result."""
    frames, tokens = window.frames, modality.tokens(8)
    whole = np.asarray(known.all(axis=(1, 2)))
    x = modality.encode(frames[None]).cpu()
    cells = known_cells(known, x.shape[2:], modality.codec.stride[0])
    marks = marks_of(tokens, x, cells)
    if known.any() and marks.weakness:
        told.append(f"no token of what is given is whole: {marks.weakness}")

    def finish(samples: UInt8[np.ndarray, "S T H W 3"]) -> UInt8[np.ndarray, "S T2 H W 3"]:
        samples = samples.copy()
        samples[:, : len(known)] = smooth_seams(samples[:, : len(known)], frames, whole)
        samples[:, : len(known)][:, known] = frames[known]
        ends = [clip if clip is None else np.broadcast_to(clip, (len(samples), *clip.shape))
                for clip in (window.before, window.after)]  # fmt: skip
        drawn = samples[:, window.new]
        return np.concatenate([clip for clip in (ends[0], drawn, ends[1]) if clip is not None], axis=1)

    def more(latents: Float[Tensor, "S L t h w"]) -> Any:
        missing = window.latents - latents.shape[2]
        if missing <= 0:
            return None
        context = latents[:, :, -window.context :].cpu()
        new = min(missing, x.shape[2] - window.context)
        canvas = torch.cat([context, torch.zeros_like(context[:, :, :1]).expand(-1, -1, new, -1, -1)], dim=2)
        places = (torch.arange(canvas.shape[2]) < window.context)[None]
        masked = tokens.sample_times(places.float(), canvas[:1]).bool()
        return Given(canvas, masked, places), lambda drawn: torch.cat(
            [latents, drawn[:, :, window.context :]], dim=2
        )

    given = Given(x, *marks, strength=1.0 if strength is None else strength)
    seen = frames if strength is not None else np.where(known[..., None], frames, GREY).astype(np.uint8)
    whole_clip = [clip for clip in (window.before, seen[window.new], window.after) if clip is not None]
    return Parts(given, finish, told, more, np.concatenate(whole_clip)[None])


def blanked(frames: Clip, hole: Bool[np.ndarray, "H W"]) -> Clip:
    """The same with the mean colour of what is left of each frame in the hole."""
    frames, rest = frames.copy(), ~hole
    frames[:, hole] = frames[:, rest].mean(1, keepdims=True).round() if rest.any() else 128
    return frames


def read(modality: "Video", given: Any, size: tuple[int, int], told: list[str]) -> Clip:
    """A clip or a picture at the model's size and tempo; says what was changed for that.

    Raises:
        ValueError: if there are no frames.
    """
    if isinstance(given, str | Path):
        path = Path(given)
        if path.is_file() and path.suffix.lower() in STILLS:
            clip = read_picture(path)[None]
        else:
            clip = of_file(modality, path, told)
    else:
        clip = np.asarray(given)
        clip = clip[None] if clip.ndim == 3 else clip
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or not clip.size:
            raise ValueError(
                f"a given clip must be a file or an array (T, H, W, 3) of uint8, got {clip.dtype} {clip.shape}"
            )
    if clip.shape[1:3] != size:
        told.append(f"{shown(given)} is {clip.shape[1]} x {clip.shape[2]}: brought to {size[0]} x {size[1]}")
    return fit(clip, size)


def of_file(modality: "Video", path: Path, told: list[str]) -> Clip:
    """Frames of a video, of a folder of frames, or of an array, in the tempo of training."""
    index = read_index(path)
    if modality.resample:
        seconds = index.seconds(modality.rate)
        num = num_moments(seconds, modality.rate)
        check_length(path, num)  # a frame may lie any time from the one before
        numbers = nearest_frames(seconds, 0.0, num, modality.rate)
        if len(numbers) != len(index) or (np.diff(numbers) != 1).any():
            told.append(
                f"{shown(path)}: frames taken at {modality.rate:g} a second, {len(numbers)} of {len(index)}"
            )
    else:
        own = modality.stride > 1 and (index.rate is None or abs(index.rate - modality.rate) > 1e-3)
        numbers = np.arange(0, len(index), modality.stride if own else 1)
        if own:
            told.append(f"{shown(path)}: every frame in {modality.stride}, as in training")
    check_length(path, len(numbers))
    if len(numbers) == len(index):
        return read_clip(path, 0, len(index), index=index)
    return read_numbers(path, numbers, index=index)


def check_length(path: Path, num: int) -> None:
    """Raises ValueError for more frames than may be given."""
    if num > MOST_FRAMES:
        raise ValueError(f"{shown(path)} must have at most {MOST_FRAMES} frames, got {num}")
