"""What two sets of clips are compared by: extractors by name, each with the way it prepares frames."""

import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from tqdm import tqdm

from ditmoe.checkpoint import replacing
from modalities.video import i3d

Clips = UInt8[np.ndarray, "S T H W 3"]
FEATURES = ("i3d", "pixels")
PROTOCOLS = ("whole", "cropped")
SIDE = 224


@dataclass(frozen=True)
class Extractor:
    """Turns clips into features, under the names that numbers computed from them may carry.

    Attributes:
        distance, kernel: what the Fréchet and the kernel distance are called: FVD and KVD with I3D alone.
        identity: what decides about the numbers, for protocol and cache.
        run: clips to features (B, F).
    """

    distance: str
    kernel: str
    identity: Mapping[str, str]
    run: Callable[[Clips], Float[Tensor, "B F"]]

    def __call__(self, clips: Clips, batch: int = 4, progress: bool = False) -> Float32[np.ndarray, "S F"]:
        """Features of a set, computed batch by batch."""
        starts = range(0, len(clips), batch)
        name = self.distance.split("/")[0]
        with torch.inference_mode():
            parts = [
                self.run(clips[start : start + batch]).float().cpu()
                for start in tqdm(starts, desc=name, unit="batch", leave=False, disable=not progress)
            ]
        return torch.cat(parts).numpy()


def make(
    name: str, protocol: str = "whole", weights: str | Path | None = None, device: str | None = None
) -> Extractor:
    """The extractor of this name.

    "i3d" gives 400 logits (FVD, arXiv 1812.01717). Frames are resized one by one, bilinear with half-pixel centres and
    without antialiasing, to 224 x 224:

    | protocol | frames                                           | as in                   |
    |----------|--------------------------------------------------|-------------------------|
    | whole    | the whole frame, its shape not kept              | StyleGAN-V, cd-fvd      |
    | cropped  | shorter side to 224, then the middle is cut out  | common_metrics_on_video |

    Those programs also differ in which clips they take (the first 2,048 by name; a random start that no seed fixes;
    sets repeated until they are 2,048), in dividing covariances by N or N - 1 (no more than 0.01 at 2,048), and in the
    stride of real and generated clips, which moves FVD by more than most papers do. Here all of that is an option of
    `evaluate_videos`, the same for both sides, and is written into the report.

    "pixels" needs no weights: mean colours of 4 x 4 areas and of quarters of the clip, and how much they change.

    Raises:
        ValueError: for another name or protocol, or where weights are missing.
    """
    if name not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {name}")
    if name == "pixels":
        identity = {
            "features": "mean colours of 4 x 4 areas in 4 parts of the clip, and mean changes, 0 to 1"
        }
        return Extractor("fd/pixels", "mmd/pixels", identity, pixels)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network, digest = i3d.load(weights, device)

    def run(clips: Clips) -> Tensor:
        return i3d.logits(network, prepared(clips, protocol).to(device))

    identity = {"features": "I3D, Kinetics-400, logits", "resize": protocol, "weights": digest}
    return Extractor(f"fvd/{protocol}", f"kvd/{protocol}", identity, run)


def prepared(clips: Clips, protocol: str) -> Float[Tensor, "B 3 T 224 224"]:
    """Clips as I3D wants them, in [-1, 1]."""
    size, (height, width) = (SIDE, SIDE), clips.shape[2:4]
    if protocol == "cropped":
        scale = SIDE / min(height, width)
        size = max(SIDE, round(height * scale)), max(SIDE, round(width * scale))
    frames = torch.from_numpy(np.ascontiguousarray(clips)).flatten(0, 1).movedim(-1, 1).float() / 127.5 - 1
    frames = F.interpolate(frames, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    frames = frames[:, :, top : top + SIDE, left : left + SIDE]
    return frames.unflatten(0, clips.shape[:2]).movedim(1, 2)


def pixels(clips: Clips) -> Float[Tensor, "B 384"]:
    """See `make`."""
    x = torch.from_numpy(np.ascontiguousarray(clips)).movedim(-1, 1).float() / 255
    change = F.pad(x.diff(dim=2).abs(), (0, 0, 0, 0, 0, 1)) if x.shape[2] > 1 else torch.zeros_like(x)
    return torch.cat([F.adaptive_avg_pool3d(of, 4).flatten(1) for of in (x, change)], dim=1)


def extract(
    extractor: Extractor, clips: Clips, folder: Path | None = None, batch: int = 4, progress: bool = False
) -> Float32[np.ndarray, "S F"]:
    """Features of a set, from a file of `folder` named by content where the same was computed before."""
    digest = sha256(repr((clips.shape, sorted(extractor.identity.items()))).encode())
    digest.update(np.ascontiguousarray(clips).tobytes())
    file = Path(folder or "") / f"{extractor.distance.replace('/', '-')}-{digest.hexdigest()[:32]}.npz"
    if folder is not None and file.is_file():
        try:
            with np.load(file, allow_pickle=False) as stored:
                return stored["features"]
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            print(f"{file} is damaged and computed anew ({type(error).__name__})", file=sys.stderr)
    found = extractor(clips, batch, progress)
    if folder is not None:
        with replacing(file) as stream:
            np.savez(stream, features=found)
    return found
