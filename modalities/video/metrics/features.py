"""Video feature extractors by name, each with its own preprocessing."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from tqdm import tqdm

from ditmoe.outside import device as own_device
from modalities.shared import cache
from modalities.shared.decode import middle
from modalities.video.metrics import i3d
from modalities.video.metrics.clip_sets import Side

Clips = UInt8[np.ndarray, "_ _ _ _ 3"] | Sequence[UInt8[np.ndarray, "_ _ _ 3"]]
"""(S, T, H, W, 3); in a list, of any sizes."""
FEATURES = ("i3d", "pixels")
SIZE = 224
LARGEST = 2**25
"""Values of a clip whose colours are averaged as a whole."""


@dataclass(frozen=True)
class Extractor:
    """Maps clips to features, and names the metrics computed from them.

    Attributes:
        distance, kernel: names of the Fréchet and kernel distances: FVD and KVD with I3D only.
        identity: everything that determines the values, for reports and cache.
        run: maps clips to features (B, F).
    """

    distance: str
    kernel: str
    identity: Mapping[str, str]
    run: Callable[[Clips], Float[Tensor, "B F"]]

    def __call__(
        self, clips: Side | Clips, batch: int = 4, progress: bool = False
    ) -> Float32[np.ndarray, "S F"]:
        """Features of a set, read and computed batch by batch."""
        starts = range(0, len(clips), batch)
        name = self.distance.split("/")[0]
        with torch.inference_mode():
            parts = [
                self.run(_some(clips, start, start + batch)).float().cpu()
                for start in tqdm(starts, desc=name, unit="batch", leave=False, disable=not progress)
            ]
        return torch.cat(parts).numpy()


def _some(clips: Side | Clips, start: int, end: int) -> Clips:
    return [clip.read() for clip in clips.clips[start:end]] if isinstance(clips, Side) else clips[start:end]


def make(
    name: str,
    resize: str = "whole",
    weights: str | PathLike | None = None,
    device: str | None = None,
    label: str | None = None,
) -> Extractor:
    """Make an extractor.

    "i3d" gives 400 logits (FVD, arXiv 1812.01717). Frames are resized separately, bilinear with half-pixel centres and
    without antialiasing, to 224 x 224:

    | resize  | frames                                           | as in                   |
    |---------|--------------------------------------------------|-------------------------|
    | whole   | the whole frame, aspect ratio not kept           | StyleGAN-V, cd-fvd      |
    | cropped | shorter side to 224, then centre-cropped         | common_metrics_on_video |

    "pixels" needs no weights: mean colours of 4 x 4 areas in quarters of the clip, and how much they change.

    Args:
        weights: I3D's weights, if the package is not installed.
        label: suffix of the names of FVD and KVD; None takes the resizing.

    Raises:
        ValueError: for an unknown name or missing weights.
    """
    if name not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {name}")
    if name == "pixels":
        identity = {
            "features": "mean colours of 4 x 4 areas in 4 parts of the clip, and mean changes, 0 to 1"
        }
        return Extractor("fd/pixels", "mmd/pixels", identity, pixels)
    device = device or str(own_device())
    network, digest = i3d.load(weights, device)

    def run(clips: Clips) -> Tensor:
        return i3d.logits(network, prepared(clips, resize).to(device))

    identity = {"features": "I3D, Kinetics-400, logits", "resize": resize, "weights": digest}
    label = label or resize
    return Extractor(f"fvd/{label}", f"kvd/{label}", identity, run)


def prepared(clips: Clips, resize: str) -> Float[Tensor, "B 3 T 224 224"]:
    """Preprocess clips for I3D, in [-1, 1]."""
    return torch.stack([_frames(clip, resize) for clip in clips])


def _frames(clip: UInt8[np.ndarray, "T h w 3"], resize: str) -> Float[Tensor, "3 T 224 224"]:
    short = min(clip.shape[1:3])
    if resize != "whole":
        clip = clip[:, *(middle(n, SIZE / short, SIZE) for n in clip.shape[1:3])]
    height, width = (
        SIZE if resize == "whole" or n == short else math.ceil(n * (SIZE / short)) for n in clip.shape[1:3]
    )
    frames = torch.from_numpy(np.ascontiguousarray(clip)).movedim(-1, 1).float() / 127.5 - 1
    frames = F.interpolate(frames, (height, width), mode="bilinear", align_corners=False)
    top, left = (height - SIZE) // 2, (width - SIZE) // 2
    return frames[:, :, top : top + SIZE, left : left + SIZE].movedim(0, 1)


def pixels(clips: Clips) -> Float[Tensor, "B 384"]:
    """See `make`."""
    return torch.stack([_areas(clip) for clip in clips])


def _areas(clip: UInt8[np.ndarray, "T h w 3"]) -> Float[Tensor, "384"]:
    if clip.size > LARGEST:
        return _areas_by_frame(clip)
    x = torch.from_numpy(np.ascontiguousarray(clip)).movedim(-1, 0).float() / 255
    change = F.pad(x.diff(dim=1).abs(), (0, 0, 0, 0, 0, 1)) if x.shape[1] > 1 else torch.zeros_like(x)
    return torch.cat([F.adaptive_avg_pool3d(of, 4).flatten() for of in (x, change)])


def _areas_by_frame(clip: UInt8[np.ndarray, "T h w 3"]) -> Float[Tensor, "384"]:
    """The same with one frame at a time in floating point: as a whole a clip takes 16 times its bytes."""
    means, changes = list[Tensor](), list[Tensor]()
    before: Tensor | None = None
    for frame in clip:
        x = torch.from_numpy(np.ascontiguousarray(frame)).movedim(-1, 0).float().div_(255)
        means.append(F.adaptive_avg_pool2d(x, 4))
        if before is not None:
            changes.append(F.adaptive_avg_pool2d((x - before).abs_(), 4))
        before = x
    changes.append(torch.zeros_like(means[0]))
    return torch.cat([F.adaptive_avg_pool3d(torch.stack(of, dim=1), 4).flatten() for of in (means, changes)])


def extract(
    extractor: Extractor,
    side: Side,
    folder: Path | None = None,
    batch: int = 4,
    progress: bool = False,
    width: int | None = None,
) -> Float32[np.ndarray, "S F"]:
    """Features of a set, cached in `folder` under a hash of the content.

    Args:
        width: F of other clips: a cached file with another F is rejected.
    """
    digest = sha256(f"{side.digest} {sorted(extractor.identity.items())}".encode()).hexdigest()
    file = folder and folder / f"{extractor.distance.replace('/', '-')}-{digest[:32]}.npz"
    form: cache.Forms = {"features": ("f4", (len(side), width or "F"))}
    return cache.computed(file, lambda: {"features": extractor(side, batch, progress)}, form)["features"]
