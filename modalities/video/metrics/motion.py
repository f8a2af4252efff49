"""Smoothness of motion in clips: changes of velocity, and the error of interpolating each frame from its neighbours."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

LONGEST, BLOCK, REACH = 64, 8, 3
"""In pixels: the longer side to which larger frames are shrunk; the block size; and the search range."""
TOLD = (
    f"blocks of {BLOCK} x {BLOCK} matched within {REACH} pixels, frames shrunk to {LONGEST} at most; jerk: change of "
    "motion from step to step; warp: error of a frame warped from its neighbours"
)
STILL = 1e-6
"""Penalty of a match per squared pixel of displacement: in uniform areas, nothing moves."""
NOISE = 1e-5
"""Least mean squared gradient for a subpixel estimate of a block's displacement."""
Grey = Float[Tensor, "T h w"]


def smoothness(frames: UInt8[np.ndarray, "T h w 3"]) -> tuple[float, float]:
    """Jerk and warp error of a clip; 0 if it has fewer than three frames.

    Each block of frame t is matched in both neighbours with subpixel accuracy. With the displacements m+ and m- to
    them,

        jerk = mean |m+ + m-|,    warp = mean |x_t - (x_{t-1}(p - m) + x_{t+1}(p + m)) / 2|,    m = (m+ - m-) / 2,

    in pixels of the shrunk frame, weighted by each block's variance, and on 0 to 255 over all pixels. Jitter of a
    single frame cancels in m, as it shifts both displacements alike.
    """
    if len(frames) < 3:
        return 0.0, 0.0
    grey = shrunk(frames)
    before, now, after = grey[:-2], grey[1:-1], grey[2:]
    on, back = motion(now, after), motion(now, before)
    weights = _blocks(now).var((-2, -1), correction=0)
    jerk = ((on + back).norm(dim=-1) * weights).sum() / weights.sum().clamp_min(1e-12)
    between = (warped(before, (back - on) / 2) + warped(after, (on - back) / 2)) / 2
    return float(jerk), 255 * float((now - between).abs().mean())


def shrunk(frames: UInt8[np.ndarray, "T H W 3"]) -> Grey:
    """Brightness, 0 to 1, at most `LONGEST` pixels long, cropped to whole blocks."""
    grey = torch.from_numpy(np.ascontiguousarray(frames)).float().mean(-1) / 255
    factor = -(-max(grey.shape[1:]) // LONGEST)
    if factor > 1:
        grey = F.avg_pool2d(grey[:, None], [min(factor, n) for n in grey.shape[1:]])[:, 0]
    rows, columns = (n // min(BLOCK, n) * min(BLOCK, n) for n in grey.shape[1:])
    return grey[:, :rows, :columns]


def motion(now: Grey, other: Grey) -> Float[Tensor, "T y x 2"]:
    """Displacement of each block of a frame in another, (row, column) in pixels: block matching and a gradient step."""
    blocks = _blocks(now)
    flat, sides, num = blocks.flatten(0, 2), blocks.shape[-2:], 2 * REACH + 1
    padded = F.pad(other[:, None], (REACH + 1,) * 4, mode="replicate")[:, 0]
    rows, columns = (side + num + 1 for side in sides)
    windows = padded.unfold(1, rows, sides[0]).unfold(2, columns, sides[1]).flatten(0, 2)
    inner = windows[None, :, 1:-1, 1:-1]
    products = F.conv2d(inner, flat[:, None], groups=len(flat))[0] / sides.numel()
    squares = F.avg_pool2d(inner.square(), list(sides), 1)[0]
    costs = flat.square().mean((1, 2))[:, None, None] + squares - 2 * products
    far = (torch.arange(num) - REACH).square()
    chosen = (costs + STILL * (far[:, None] + far)).flatten(1).argmin(1)
    place = torch.stack([chosen // num, chosen % num], -1)
    parts = windows.unfold(1, sides[0] + 2, 1).unfold(2, sides[1] + 2, 1)
    part = parts[torch.arange(len(flat)), place[:, 0], place[:, 1]]
    slopes = (
        torch.stack([part[:, 2:, 1:-1] - part[:, :-2, 1:-1], part[:, 1:-1, 2:] - part[:, 1:-1, :-2]], -1) / 2
    )
    slopes, error = slopes.flatten(1, 2), (flat - part[:, 1:-1, 1:-1]).flatten(1)
    known = slopes.mT @ slopes + NOISE * sides.numel() * torch.eye(2)
    step = torch.linalg.solve(known, slopes.mT @ error[..., None])[..., 0].clamp(-0.5, 0.5)
    return (place - REACH + step).unflatten(0, blocks.shape[:3])


def warped(grey: Grey, ways: Float[Tensor, "T y x 2"]) -> Grey:
    """Sample each block's pixels at its displacement, with edge padding."""
    size = torch.tensor(grey.shape[1:])
    flow = F.interpolate(ways.movedim(-1, 1), tuple(size.tolist()), mode="nearest").movedim(1, -1)
    place = torch.stack(torch.meshgrid(*(torch.arange(n) for n in size.tolist()), indexing="ij"), -1) + flow
    grid = ((2 * place + 1) / size - 1).flip(-1)
    return F.grid_sample(grey[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def centres(
    clips: UInt8[np.ndarray, "S T H W 3"],
) -> tuple[Float[np.ndarray, "S T 2"], Float[np.ndarray, "S T"]]:
    """Centroids of brightness, (row, column) in pixels, and total brightness."""
    grey = np.maximum(clips.mean(-1) / 255 - 0.15, 0)
    ink = np.maximum(grey.sum((2, 3)), 1e-3)
    rows, columns = np.arange(grey.shape[2]), np.arange(grey.shape[3])
    y, x = (grey.sum(3) * rows).sum(2) / ink, (grey.sum(2) * columns).sum(2) / ink
    return np.stack([y, x], -1), ink


def _blocks(grey: Grey) -> Float[Tensor, "T y x b c"]:
    sides = [min(BLOCK, n) for n in grey.shape[1:]]
    return grey.unfold(1, sides[0], sides[0]).unfold(2, sides[1], sides[1])
