"""Editing of given clips: extension forwards and backwards, connection, loops, inpainting, change at a strength.

Latents group frames: the first is encoded alone, the others in groups. The known part must cover whole groups, and
known frames after generated ones cannot decode to themselves, since decoders also read earlier frames: so the
user's own frames are put back at the end.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ditmoe.given import Given, Parts
from modalities.latent.given import hole_of, known_cells, marks_of, read_picture, shown
from modalities.video.given_clip import Clip, read
from modalities.video.given_windows import Planner, Window
from modalities.video.seam import smooth_seams

if TYPE_CHECKING:
    from modalities.video.adapter import Video

WORDS: Mapping[str, str] = {
    "keep": "[first,end) frames of a clip, negative ones from its end, which then is the end of the result; or all",
    "between": "frames that connect two clips",
    "loop": "frames that lead from the end of a clip to its beginning",
    "mask": "a picture, white where each frame is to be drawn anew",
}
GREY = 128
"""Grey level that shows frames to be generated in previews of the input."""


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
    """Implements `Video.parts`."""
    several = isinstance(given, list | tuple)
    names = list(given) if several else [given]
    size, told = tuple(shape.get("size") or modality.size), list[str]()
    clips = [read(modality, name, size, told) for name in names]
    if loop is not None and len(clips) > 1:
        raise ValueError(
            f"loop={loop} leads from the end of one clip to its beginning, got {len(clips)} clips: give one, or say "
            f"between={loop} to connect two"
        )
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
        hole = hole_of(read_picture(mask), size, mask, strength)
        known = known & ~hole
        if strength is None:  # the model must not see removed content around the hole either
            window = replace(window, frames=blanked(window.frames, hole))
    if known.all():
        raise ValueError(
            f"{shown(names[0])} leaves nothing to draw: say frames= for more than {len(window.frames)}, keep=, "
            "mask= or strength="
        )
    return finished(modality, window, known, strength, told)


def finished(
    modality: "Video",
    window: Window,
    known: Bool[np.ndarray, "T H W"],
    strength: float | None,
    told: list[str],
) -> Parts:
    """Prepare a window for the sampler, and the function that inserts samples into the result."""
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
    """Fill the hole in each frame with the mean colour of the rest of the frame."""
    frames, rest = frames.copy(), ~hole
    frames[:, hole] = frames[:, rest].mean(1, keepdims=True).round() if rest.any() else 128
    return frames
