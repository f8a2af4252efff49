"""Evaluation protocols: which clips are compared and how, our own or a public program's, with known differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

SIDES = ("generated", "reference")
STARTS = ("random", "first")
RESIZES = ("whole", "cropped")


@dataclass(frozen=True)
class Protocol:
    """How a clip is taken from each video and preprocessed.

    Attributes:
        name: suffix of metric names: a resizing or a preset.
        resize: resizing of frames, see `features.make`.
        ddof: covariances are divided by S - ddof.
        starts: side -> "random", by seed, or "first"; the training set's is that of the reference.
        choice: which videos if there are more than `nums`: "random", by seed, or "first", by name.
        nums: side -> most videos; None is all.
        frames: frames of a clip.
        stride: distance between its frames, on both sides.
        differences: remaining differences from the program that a preset is named after.
    """

    name: str
    resize: str
    ddof: int
    starts: Mapping[str, str]
    choice: str
    nums: Mapping[str, int | None]
    frames: int = 16
    stride: int = 1
    differences: Sequence[str] = ()

    @property
    def span(self) -> int:
        """Number of video frames that a clip spans."""
        return (self.frames - 1) * self.stride + 1


_WEIGHTS = "the original's weights, where it has a port: the published check gives 151.392 here, "
_SEEDED = "random starts go by seed and are the same in each run"
_SHORT = "a set that is too small is told"
PRESETS: Mapping[str, Protocol] = {
    "styleganv": Protocol(
        "styleganv", "whole", 0, {"generated": "first", "reference": "random"}, "first", dict.fromkeys(SIDES, 2048),
        differences=(f"{_WEIGHTS}151.256 there", f"{_SEEDED}, there in none", f"{_SHORT}, there taken without a word"),
    ),
    "cdfvd": Protocol(
        "cdfvd", "whole", 0, dict.fromkeys(SIDES, "random"), "random", {"generated": 2048, "reference": None},
        differences=(
            "the original's weights, where it has a port",
            f"{_SHORT}, there repeated until it has 2,048",
            "a stride leaves a clip all its frames, there it shortens clips of video files",
            "videos keep their size until 224 x 224, there its loader first makes them square",
        ),
    ),
    "common": Protocol(
        "common", "cropped", 1, dict.fromkeys(SIDES, "first"), "first", dict.fromkeys(SIDES, None),
        differences=(f"{_WEIGHTS}151.256 or 151.392 there", "sets may differ in count and size, there they must not"),
    ),
}  # fmt: skip
"""StyleGAN-V (arXiv 2112.14683), cd-fvd (arXiv 2404.12391), common_metrics_on_video_quality."""


def make(preset: str | None, resize: str, frames: int, stride: int, start: str, num: int | None) -> Protocol:
    """Make a protocol; a preset determines all but `frames`, `stride` and a given `num`.

    Raises:
        ValueError: for invalid options.
    """
    if num is not None and num < 2:
        raise ValueError(f"num must be at least 2, or null for all, got {num}")
    if min(frames, stride) < 1 or start not in STARTS:
        raise ValueError(
            f"frames and stride must be at least 1, start {' or '.join(STARTS)}, got {frames}, {stride}, {start}"
        )
    if preset is None:
        if resize not in RESIZES:
            raise ValueError(f"protocol must be one of {', '.join(RESIZES)}, got {resize}")
        sides = dict.fromkeys(SIDES, start), "random", dict.fromkeys(SIDES, num)
        return Protocol(resize, resize, 1, *sides, frames, stride)
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, or null, got {preset}")
    chosen = PRESETS[preset]
    nums = chosen.nums if num is None else dict.fromkeys(SIDES, num)
    return replace(chosen, nums=nums, frames=frames, stride=stride)
