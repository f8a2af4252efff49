"""Image feature extractors by name, each with its own resizing and scaling."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ditmoe.modality import Samples
from ditmoe.outside import Arrays, TooFewError, check_items, is_regular, printable
from ditmoe.outside import device as own_device
from modalities.image.metrics import efficientnet, inception_weights
from modalities.shared import cache
from modalities.shared.frechet import Statistics

Images = UInt8[np.ndarray, "S H W 3"]
Found = dict[str, Tensor]
ImageSet = Samples | np.ndarray
EXTRACTORS = ("pixels", "efficientnet-lite0", "inception")
STRIP = 2**24
"""Values of images that `pixels` holds at a time in double precision, eight times their bytes."""
LARGEST_STATISTIC = 1e18
"""Largest mean or variance of a feature in a reference file; beyond, distances overflow."""


@dataclass(frozen=True)
class Extractor:
    """Maps images to features, and names the metrics computed from them.

    Attributes:
        name: name of the variant: "adm", "clean", "pytorch-fid", "efficientnet-lite0", "pixels".
        distance, kernel: names of the Fréchet and kernel distances: FID and KID with Inception only.
        identity: everything that determines the values (network, hash of its weights, resizing), for reports and cache.
        run: maps images to "features" (B, F), and with ADM's protocol "spatial" and "probabilities".
        kinds: keys of the output of `run`.
    """

    name: str
    distance: str
    kernel: str
    identity: Mapping[str, str]
    run: Callable[[Images], Found]
    kinds: Sequence[str] = ("features",)

    def __call__(self, images: Images, batch: int = 32, progress: bool = False) -> dict[str, np.ndarray]:
        """Features of a set, float32 (S, F) each, computed batch by batch."""
        starts = range(0, len(images), batch)
        shown = tqdm(starts, desc=self.name, unit="batch", leave=False, disable=not progress)
        with torch.inference_mode():
            parts = [self.run(images[start : start + batch]) for start in shown]
        return {kind: torch.cat([part[kind].float().cpu() for part in parts]).numpy() for kind in parts[0]}


def make(
    name: str, protocol: str = "adm", weights: str | PathLike | None = None, device: str | None = None
) -> Extractor:
    """Make an extractor.

    Args:
        name: one of `EXTRACTORS`.
        protocol: for inception, the preprocessing of images: one of `PROTOCOLS`.
        weights: for inception, its published weights (`inception_weights.load`).
        device: device of the network; None takes a GPU if there is one.

    Raises ValueError for an unknown name or missing weights.
    """
    device = device or str(own_device())
    if name == "pixels":
        identity = {"features": "mean colour of 8 x 8 areas, 0 to 1"}
        return Extractor(name, "fd/pixels", "mmd/pixels", identity, pixels)
    if name == "efficientnet-lite0":
        return _lite0(device)
    if name != "inception":
        raise ValueError(f"features must be one of {', '.join(EXTRACTORS)}, got {name}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol}")
    network, digest = inception_weights.load(weights)
    network.to(device)

    kinds = ("features", "spatial", "probabilities")[: 3 if protocol == "adm" else 1]

    def run(images: Images) -> Found:
        return dict(zip(kinds, network(PROTOCOLS[protocol](images).to(device)), strict=False))

    identity = {"features": "Inception 2015-12-05, pool 3", "resize": protocol, "weights": digest}
    return Extractor(protocol, f"fid/{protocol}", f"kid/{protocol}", identity, run, kinds)


def extract(
    extractor: Extractor,
    images: Images,
    folder: Path | None = None,
    batch: int = 32,
    progress: bool = False,
    like: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Features of a set and their statistics, cached in `folder`.

    The file is named after a hash of the images and of the extractor's identity. Beside the features it holds what an
    ADM reference file does: mu, sigma, and mu_s, sigma_s if there are spatial features.

    Args:
        like: features just computed of other images: a cached file with another feature size is rejected.
    """
    digest = sha256(repr((images.shape, sorted(extractor.identity.items()))).encode())
    digest.update(np.ascontiguousarray(images).tobytes())
    means = [
        (kind, suffix) for kind, suffix in (("features", ""), ("spatial", "_s")) if kind in extractor.kinds
    ]

    def compute() -> dict[str, np.ndarray]:
        found = extractor(images, batch, progress)
        for kind, suffix in means:
            whole = Statistics.of(found[kind])
            found |= {f"mu{suffix}": whole.mu, f"sigma{suffix}": whole.sigma}
        return found

    width = {kind: like[kind].shape[1] if like else kind for kind in extractor.kinds}
    forms: dict[str, tuple[str, tuple[int | str, ...]]] = {
        kind: ("f4", (len(images), width[kind])) for kind in extractor.kinds
    }
    for kind, suffix in means:
        forms |= {f"mu{suffix}": ("f8", (width[kind],)), f"sigma{suffix}": ("f8", (width[kind], width[kind]))}
    file = folder and folder / f"{extractor.name}-{digest.hexdigest()[:32]}.npz"
    return cache.computed(file, compute, forms)


def legacy_bilinear(images: Images, size: int = 299) -> Float[Tensor, "S 3 size size"]:
    """TensorFlow 1's bilinear resize: pixel i of n samples the input at i n_in / n_out (aligned at the top-left
    corner, no half-pixel centres), without antialiasing or rounding. 0 to 255.
    """
    x = torch.from_numpy(images).movedim(-1, 1).float()
    for axis in (3, 2):
        count = x.shape[axis]
        at = torch.arange(size, dtype=torch.float32) * float(np.float32(count) / np.float32(size))
        low = at.long()
        shape = [-1 if i == axis else 1 for i in range(4)]
        a, b = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=count - 1))
        x = a + (b - a) * (at - low).reshape(shape)
    return x


def bicubic(images: Images, size: int = 299) -> Float[Tensor, "S 3 size size"]:
    """PIL's bicubic resize of each channel in float: antialiased, not rounded, clipped to 0..255 (arXiv 2104.11222)."""
    out = np.empty((len(images), 3, size, size), np.float32)
    for image, target in zip(images, out, strict=True):
        for channel in range(3):
            plane = Image.fromarray(image[..., channel].astype(np.float32))
            target[channel] = np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(out.clip(0, 255))


def _adm(images: Images) -> Float[Tensor, "S 3 299 299"]:
    """The TensorFlow graph's own preprocessing, as used by the evaluators of FID's authors and of ADM
    (arXiv 1706.08500, 2105.05233): legacy bilinear, (x - 128) / 128.
    """
    return (legacy_bilinear(images) - 128) / 128


def _clean(images: Images) -> Float[Tensor, "S 3 299 299"]:
    """clean-fid's preprocessing (arXiv 2104.11222): bicubic, antialiased; (x - 128) / 128."""
    return (bicubic(images) - 128) / 128


def _pytorch_fid(images: Images) -> Float[Tensor, "S 3 299 299"]:
    """pytorch-fid's preprocessing: bilinear with half-pixel centres, not antialiased; 2 x / 255 - 1."""
    x = torch.from_numpy(images).movedim(-1, 1).float() / 255
    return 2 * F.interpolate(x, (299, 299), mode="bilinear", align_corners=False) - 1


PROTOCOLS: Mapping[str, Callable[[Images], Tensor]] = {
    "adm": _adm,
    "clean": _clean,
    "pytorch-fid": _pytorch_fid,
}


def pixels(images: Images, size: int = 8) -> Found:
    """Mean colour of size x size equal areas, exact (pixels are weighted by overlap), 0 to 1."""

    def shares(count: int) -> Tensor:
        edges = torch.arange(size + 1, dtype=torch.float64) * count / size
        pixel = torch.arange(count, dtype=torch.float64)
        upper = torch.minimum(edges[1:, None], pixel + 1)
        return (upper - torch.maximum(edges[:-1, None], pixel)).clamp(min=0) * size / count

    down, across = shares(images.shape[1]), shares(images.shape[2])
    areas = torch.zeros(len(images), size, size, 3, dtype=torch.float64)
    rows = max(1, STRIP // (len(images) * images.shape[2] * 3))
    for top in range(0, images.shape[1], rows):
        x = torch.from_numpy(images[:, top : top + rows]).double().div_(255)
        narrow = torch.einsum("shwc, xw -> shxc", x, across)
        areas += torch.einsum("yh, shxc -> syxc", down[:, top : top + rows], narrow)
    return {"features": areas.flatten(1)}


def _lite0(device: str) -> Extractor:
    """Bicubic, antialiased, to 224 x 224; (x - 127) / 128; the 1,280 pooled features."""
    weights, digest = efficientnet.load(device)

    def run(images: Images) -> Found:
        return {"features": efficientnet.pooled(weights, (bicubic(images, 224).to(device) - 127) / 128)}

    name = "efficientnet-lite0"
    identity = {"features": f"{name}, pooled", "resize": "bicubic, antialiased, 224", "weights": digest}
    return Extractor(name, f"fd/{name}", f"mmd/{name}", identity, run)


def checked(of: ImageSet, role: str) -> Samples:
    samples = of if isinstance(of, Samples) else Samples(of)
    data = samples.data
    if data.ndim != 4 or data.shape[3] != 3 or data.dtype != np.uint8 or 0 in data.shape[1:]:
        raise ValueError(f"{role} must be uint8 RGB (S, H, W, 3), got {data.dtype} of shape {data.shape}")
    if len(data) < 2:
        raise TooFewError(f"{role} must hold at least 2 images, got {len(data)}")
    if samples.labels is not None and len(samples.labels) != len(data):
        raise ValueError(f"{role} must have a label per image, got {len(samples.labels)} for {len(data)}")
    return samples


def read_reference(file: Path) -> tuple[dict[str, Statistics], Samples | None]:
    """The statistics and images of a reference file, as far as it has them."""
    if not is_regular(file):
        raise ValueError(f"reference must be an npz of statistics or images, but {file} does not exist")
    try:
        with Arrays(file) as stored:
            if "arr_0" in stored and (shape := stored.about("arr_0")[0]):
                check_items(shape[0], file)
            arrays = {n: stored[n] for n in ("mu", "sigma", "mu_s", "sigma_s", "arr_0") if n in stored}
            keys = printable(", ".join(stored))
    except (OSError, ValueError) as error:
        raise ValueError(f"{printable(file)} is no npz, or is damaged: {error}") from error
    statistics = {}
    for kind, suffix in (("features", ""), ("spatial", "_s")):
        mu, sigma = arrays.get(f"mu{suffix}"), arrays.get(f"sigma{suffix}")
        if mu is not None and sigma is not None:
            numbers = mu.dtype.kind in "fiu" and sigma.dtype.kind in "fiu"
            fits = numbers and mu.ndim == 1 and sigma.shape == 2 * mu.shape
            if not fits or not np.isfinite(mu.sum() + sigma.sum()):
                raise ValueError(
                    f"{file} must hold mu{suffix} (F,) and sigma{suffix} (F, F), finite, got {mu.shape} "
                    f"and {sigma.shape}"
                )
            statistics[kind] = Statistics(mu.astype(np.float64), sigma.astype(np.float64))
            _check_covariance(statistics[kind], f"{printable(file)}: sigma{suffix}")
    if "features" not in statistics and "arr_0" not in arrays:
        raise ValueError(
            f"{file} must hold mu and sigma (for sFID mu_s and sigma_s), or arr_0, but has {keys}"
        )
    return statistics, checked(arrays["arr_0"], f"arr_0 of {file}") if "arr_0" in arrays else None


def _check_covariance(of: Statistics, name: str) -> None:
    """Raise ValueError for a matrix that is the covariance of nothing, from which a distance could come out as 0.

    It is checked to be symmetric and to have no correlation beyond 1, up to rounding in float16.
    """
    spread = np.sqrt(of.sigma.diagonal().clip(0))
    allowed = np.outer(spread, spread)
    allowed += 1e-2 * allowed.max(initial=0)
    if not (of.sigma.diagonal() >= 0).all() or (np.abs(of.sigma) > allowed).any():
        raise ValueError(f"{name} must be a covariance, got negative variances or correlations beyond 1")
    if (np.abs(of.sigma - of.sigma.T) > 1e-2 * allowed).any():
        raise ValueError(f"{name} must be a covariance, got one that is not symmetric")
    if (most := max(np.abs(of.mu).max(initial=0), allowed.max(initial=0))) > LARGEST_STATISTIC:
        raise ValueError(f"{name} and its mean must lie below {LARGEST_STATISTIC:g}, got {most:g}")
