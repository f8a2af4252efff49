"""The approximate matching behind many published "EMD" values, for comparison with their tables."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.outside import device as own_device

SHARPNESS = (*(4.0**power for power in range(7, -2, -1)), 0.0)
"""How strongly each round prefers near points, from 16384 down to 1/4, and finally 0."""

TINY = 1e-9


def approx_emd(
    x: Float[Tensor, "B N 3"], y: Float[Tensor, "B N 3"], squared: bool = False
) -> Float[Tensor, " B"]:
    """Cost of a soft, greedy matching of each cloud of `x` with that of `y`, divided by N.

    Every point has unit mass to send (x) or to receive (y). In ten rounds of decreasing sharpness λ,

        each x_i offers its remaining mass a_i in shares proportional to b_j exp(-λ |x_i - y_j|²);
        each y_j accepts at most its remaining capacity b_j, proportionally from all offers;

    and accepted mass is final: no round repairs an earlier one. The cost is Σ moved_ij |x_i - y_j|
    (approx_l2: PointFlow's kernel, arXiv 1906.12320) or the same with the squared distance (approx_sq: that
    of PVD, arXiv 2104.03670, DiT-3D and LION). The matching is the same for both (Fan et al., arXiv 1612.00603);
    PointFlow's omits the last round, which changes the cost by a factor of 1e-7 or less.

    It is not a metric: never below the exact cost except for rounding, often far above; not zero for a cloud and
    itself; not symmetric, since x offers and y chooses; and λ has units of 1/length², so it does not scale.
    In float32, like theirs, but about a common centre, so it does not degrade far from the origin.
    """
    centre = (x.mean(dim=1, keepdim=True) + y.mean(dim=1, keepdim=True)) / 2
    x, y = (x - centre).float(), (y - centre).float()
    squares = sum((x[:, :, None, axis] - y[:, None, :, axis]) ** 2 for axis in range(3))
    assert isinstance(squares, Tensor)
    ways = squares if squared else squares.sqrt()
    left, room = torch.ones_like(x[:, :, :1]), torch.ones_like(y[:, :, :1])  # (B, N, 1)
    cost = torch.zeros_like(left)
    near, scratch = torch.empty_like(squares), torch.empty_like(squares)
    for sharpness in SHARPNESS:
        torch.mul(squares, -sharpness, out=near).exp_()
        offer = left / (near @ room + TINY)
        offered = room * (near.mT @ offer)
        taken = room * (room / (offered + TINY)).clamp(max=1)
        room = (room - offered).clamp(min=0)
        left = (left - offer * (near @ taken)).clamp(min=0)
        cost += offer * (torch.mul(near, ways, out=scratch) @ taken)
    return cost.double().mean(dim=(1, 2))


def pairwise_approx(
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    squared: bool,
    progress: Callable[[int], object] | None = None,
    device: torch.device | None = None,
) -> Float[np.ndarray, "A B"]:
    """`approx_emd` of every cloud of `a`, which offers, with every cloud of `b`; on the GPU if there is one.

    All clouds have the same number of points. All A x B pairs are computed, even if `b` is `a`. On a CPU it runs in
    torch's own threads.
    """
    device = device or own_device()
    left, right = (torch.from_numpy(np.stack(list(clouds))).double().to(device) for clouds in (a, b))
    out = np.empty((len(a), len(b)))
    with torch.no_grad():
        for rows, columns in _batches(len(a), len(b), left.shape[1], device):
            out[rows, columns] = approx_emd(left[rows], right[columns], squared).cpu().numpy()
            if progress is not None:
                progress(len(rows))
    return out


def _batches(
    num_left: int, num_right: int, points: int, device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of pairs that keep a GPU busy within about 1 GiB, or a core within its cache."""
    size = max(1, (2**16 if device.type == "cpu" else 2**26) // points**2)
    rows, columns = np.divmod(np.arange(num_left * num_right), num_right)
    for start in range(0, len(rows), size):
        yield rows[start : start + size], columns[start : start + size]
