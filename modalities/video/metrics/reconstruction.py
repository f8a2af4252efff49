"""Reconstruction quality of clips: PSNR and SSIM, frame by frame."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, UInt8
from torch import Tensor

from modalities.video.metrics.clip_sets import Side

Clip = UInt8[np.ndarray, "_ _ _ 3"]
"""(T, H, W, 3)"""
WINDOW, SIGMA = 11, 1.5
EQUAL = 100.0
"""PSNR in dB assigned to an exact reconstruction."""


def psnr(clip: Clip, other: Clip) -> float:
    """Peak signal-to-noise ratio in dB, per frame over pixels and channels, averaged over frames.

    10 log10(255^2 / MSE) in RGB, 0 to 255; at most `EQUAL`.
    """
    a, b = _both(clip, other)
    error = (a - b).square().mean((1, 2, 3))
    return float((10 * torch.log10(255**2 / error)).clamp_max(EQUAL).mean())


def ssim(clip: Clip, other: Clip) -> float:
    """Structural similarity (Wang et al., 2004, IEEE Trans. Image Process. 13(4)), -1 to 1.

        (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2))

    with local means and covariances under a normalised Gaussian window of 11 x 11 with deviation 1.5, C1 =
    (0.01 * 255)^2 and C2 = (0.03 * 255)^2, in float64. Per channel of each frame (RGB, 0 to 255), without padding or
    downsampling; then averaged over positions, channels and frames.

    Raises:
        ValueError: if a frame is smaller than the window.
    """
    a, b = _both(clip, other)
    if min(a.shape[2:]) < WINDOW:
        raise ValueError(
            f"SSIM needs frames of at least {WINDOW} x {WINDOW}, got {a.shape[2]} x {a.shape[3]}"
        )
    place = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(place**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()

    def mean(x: Tensor) -> Tensor:
        rows = F.conv2d(x.flatten(0, 1)[:, None], weights.view(1, 1, -1, 1))
        return F.conv2d(rows, weights.view(1, 1, 1, -1))

    m_a, m_b = mean(a), mean(b)
    v_a, v_b, covariance = mean(a * a) - m_a**2, mean(b * b) - m_b**2, mean(a * b) - m_a * m_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    alike = (2 * m_a * m_b + c1) * (2 * covariance + c2)
    return float((alike / ((m_a**2 + m_b**2 + c1) * (v_a + v_b + c2))).mean())


def reconstruction(real: Side, other: Side) -> dict[str, float]:
    """Means of PSNR and, if frames are large enough, SSIM over the clips of two versions of a set."""
    found: dict[str, list[float]] = {"psnr": [], "ssim": []}
    large = min(min(clip.size) for clip in real.clips) >= WINDOW
    for a, b in zip(real.clips, other.clips, strict=True):
        frames, reconstructed = a.read(), b.read()
        found["psnr"].append(psnr(frames, reconstructed))
        if large:
            found["ssim"].append(ssim(frames, reconstructed))
    return {name: float(np.mean(each)) for name, each in found.items() if each}


def _both(clip: Clip, other: Clip) -> tuple[Float64[Tensor, "T 3 H W"], Float64[Tensor, "T 3 H W"]]:
    if clip.shape != other.shape:
        raise ValueError(
            f"a clip and its reconstruction must be of one shape, got {clip.shape} and {other.shape}"
        )
    a, b = (torch.from_numpy(np.ascontiguousarray(of)).movedim(-1, 1).double() for of in (clip, other))
    return a, b
