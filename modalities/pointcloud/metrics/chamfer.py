"""Batched Chamfer distance of many pairs of clouds on a GPU, in float64 like the compiled kernels.

Uses pytorch3d's `knn_points` if installed (`pip install -e '.[pytorch3d]'`), else plain torch.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.outside import device as own_device

ENTRIES = 2**26
"""Entries of all distance matrices in memory at once: 512 MiB."""


def pairwise_chamfer(
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    rows: Int[np.ndarray, " P"],
    columns: Int[np.ndarray, " P"],
    progress: Callable[[int], object] | None = None,
    device: torch.device | None = None,
) -> Float[np.ndarray, " P"]:
    """`distance.chamfer` of P pairs, a[rows] with b[columns]: clouds of any size, float64.

    Besides the clouds it needs about the memory of `ENTRIES` distances, however large the clouds are.
    """
    if len(rows) == 0:
        return np.empty(0)
    device = device or own_device()
    left, right = _on(device, a), _on(device, b)
    out = np.empty(len(rows))
    for part in _parts(len(rows), left[0].shape[1] * right[0].shape[1]):
        i, j = (torch.from_numpy(index[part]).to(device) for index in (rows, columns))
        x, y = left[0][i], right[0][j]
        to_y, to_x = squares(x, y)
        mean_x, mean_y = (to_y * left[1][i]).sum(dim=1), (to_x * right[1][j]).sum(dim=1)
        out[part] = (mean_x + mean_y).cpu().numpy()
        if progress is not None:
            progress(len(i))
    return out


def squares(
    x: Float[Tensor, "B N 3"], y: Float[Tensor, "B M 3"]
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B M"]]:
    """Squared distance from each point of x to the nearest of y, and vice versa."""
    if (knn := knn_points()) is not None:
        return knn(x, y).dists[..., 0], knn(y, x).dists[..., 0]
    return nearest_squares(x, y)


def nearest_squares(
    x: Float[Tensor, "B N 3"], y: Float[Tensor, "B M 3"], entries: int = ENTRIES
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B M"]]:
    """`squares` in plain torch, for some points of x at a time.

    The nearest neighbour is found by |x|² - 2 x·y + |y|² about a common centre, a matrix product; its distance is then
    computed from the difference itself. So rounding of the product, 1e-16 of the squared cloud size, only ever decides
    between points that are equally near.
    """
    centre = (x.mean(dim=1, keepdim=True) + y.mean(dim=1, keepdim=True)) / 2
    p, q = x - centre, y - centre
    norm, ones = (p * p).sum(dim=2, keepdim=True), torch.ones_like(p[..., :1])
    p = torch.cat([-2 * p, norm, ones], dim=2)
    q = torch.cat([q, torch.ones_like(q[..., :1]), (q * q).sum(dim=2, keepdim=True)], dim=2)
    of_x: list[Tensor] = []
    best = torch.full(y.shape[:2], torch.inf, dtype=y.dtype, device=y.device)
    of_y = torch.zeros(y.shape[:2], dtype=torch.long, device=y.device)
    step = max(1, entries // (len(x) * y.shape[1]))
    for start in range(0, x.shape[1], step):
        ways = p[:, start : start + step] @ q.mT  # (B, step, M)
        of_x.append(ways.argmin(dim=2))
        low, index = ways.min(dim=1)
        of_y = torch.where(low < best, index + start, of_y)
        best = torch.minimum(best, low)
    return _square(x, y, torch.cat(of_x, dim=1)), _square(y, x, of_y)


@cache
def knn_points() -> Callable[..., Any] | None:
    """pytorch3d's `knn_points`; None if it is not installed, or not for this torch."""
    try:
        from pytorch3d.ops import knn_points
    except (ImportError, OSError):
        return None
    return knn_points


def _square(x: Tensor, y: Tensor, nearest: Int[Tensor, "B N"]) -> Tensor:
    return (x - y.gather(1, nearest[..., None].expand(-1, -1, 3))).square().sum(dim=2)


def _on(device: torch.device, clouds: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Clouds (A, N, 3), padded with their first point, and the weight of each point, (A, N)."""
    sizes = np.array([len(cloud) for cloud in clouds])
    place = np.arange(sizes.max())
    real = place < sizes[:, None]
    index = np.where(real, place, 0)
    points = np.stack([cloud[i] for cloud, i in zip(clouds, index, strict=True)])
    return tuple(torch.from_numpy(array).to(device) for array in (points, real / sizes[:, None]))  # type: ignore[return-value]


def _parts(num: int, entries: int) -> Iterator[slice]:
    """Chunks of pairs within the limit on distances."""
    step = max(1, ENTRIES // entries)
    return (slice(start, start + step) for start in range(0, num, step))
