"""Lower bounds of the earth mover's distance, from cheap to expensive, ending with the distance itself.

The bounds hold for the distance as computed: possible floating-point errors are subtracted. So a pair whose bound
is above a known distance is farther, and need not be solved.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ditmoe.outside import device as own_device
from ditmoe.outside import has_cuda
from modalities.pointcloud import kernels

QUANTILES = 128
GROUPS = 256
"""Most groups on the coarsest level of the kernels, and roughly the number in `dual_bound`."""


class Level(IntEnum):
    """How tightly a pair's distance is known, and from what."""

    PROJECTED = 0
    """A bound from sorted projections (`Projections`)."""
    COARSE = 1
    """A bound from the dual of 65 to 256 groups of points."""
    FINE = 2
    """A bound from the dual of groups of four points."""
    PRICED = 3
    """A bound from the dual prices of an exact solution stopped early because it exceeded the limit."""
    SOLVED = 4
    """The distance itself."""


class Projections:
    """Bounds from sorted projections onto axes, from one cloud to many at once.

    For an orthonormal basis v_1..v_3, E|d| >= |(E|d·v_1|, E|d·v_2|, E|d·v_3|)| by Jensen's inequality, and the mean
    displacement along v_k is at least that of the best matching along it, W_k, which pairs the sorted projections:

        EMD >= sqrt(W_1² + W_2² + W_3²)

    and the same for squared costs without the root, with W_k² the mean square. Means over runs of sorted projections
    replace the projections, which only lowers W_k (Jensen again). Of several bases the largest bound is taken.
    """

    def __init__(self, clouds: Sequence[np.ndarray], squared: bool, bases: int = 1):
        num_points = len(clouds[0])
        self.squared, self.bases, self.quantiles = squared, bases, min(QUANTILES, num_points)
        starts = np.arange(self.quantiles) * num_points // self.quantiles
        shares = np.diff(starts, append=num_points) / num_points
        weights = np.sqrt(shares) if squared else shares
        axes = np.concatenate([_basis(k) for k in range(bases)], axis=1)
        centre = clouds[0].mean(axis=0)
        self.means = np.empty((len(clouds), 3 * bases, self.quantiles))
        for out, cloud in zip(self.means, clouds, strict=True):
            along = np.sort((cloud - centre) @ axes, axis=0)
            out[:] = (np.add.reduceat(along, starts) * (weights / (shares * num_points))[:, None]).T
        # Rounding of sums of numbers of this size over a run; the margin covers all other rounding.
        largest = max(float(abs(cloud).max()) for cloud in clouds)
        self.error = 1e-15 * (64 + num_points / self.quantiles) * largest

    def bounds(self, one: int) -> Float[np.ndarray, " A"]:
        """Bounds from cloud `one` to every cloud."""
        ways = kernels.slice_bounds(self.means[one], self.means, self.bases, self.squared)
        if ways is None:
            apart = self.means - self.means[one]
            along = (apart**2).sum(axis=2) if self.squared else abs(apart).sum(axis=2) ** 2
            ways = np.sqrt(along.reshape(len(along), self.bases, 3).sum(axis=2).max(axis=1))
        return self._allowing_for_rounding(ways)

    def all(self, device: torch.device | None = None) -> Float[np.ndarray, "A A"]:
        """Bounds between all clouds, on a device or by default on the GPU, as one matrix per direction."""
        if device is None and not has_cuda():
            return np.array([self.bounds(i) for i in range(len(self.means))])
        means = torch.from_numpy(self.means).to(device or own_device())
        best = means.new_zeros(len(means), len(means))
        for basis in means.split(3, dim=1):
            total, p = torch.zeros_like(best), 2.0 if self.squared else 1.0
            for line in basis.unbind(1):
                total += torch.cdist(line, line, p, compute_mode="donot_use_mm_for_euclid_dist").square()
            best = torch.maximum(best, total)
        return self._allowing_for_rounding(best.sqrt().cpu().numpy())

    def _allowing_for_rounding(self, ways: np.ndarray) -> np.ndarray:
        ways = np.maximum(ways * (1 - 1e-12) - self.error, 0)
        return ways**2 if self.squared else ways


@dataclass(frozen=True)
class Ladder:
    """The levels for pairs of clouds of `num_points` points: increasingly expensive and tight, up to exact."""

    num_points: int
    squared: bool

    @property
    def levels(self) -> list[Level]:
        if self.num_points <= GROUPS:  # the groups would be no coarser than the points
            return [Level.SOLVED]
        if kernels.available() and self.num_points > 4 * GROUPS:
            return [Level.COARSE, Level.FINE, Level.SOLVED]
        return [Level.FINE, Level.SOLVED]

    def above(self, level: Level) -> Level:
        """The next level."""
        return next(known for known in self.levels if known > level)

    def ask(self, x: np.ndarray, y: np.ndarray, level: Level, limit: float = math.inf) -> tuple[float, Level]:
        """Compute a bound or the distance, and its level: solving may stop as soon as it exceeds the limit."""
        if level != Level.SOLVED:
            group = 4 if level == Level.FINE else 4 ** math.ceil(math.log(self.num_points / GROUPS, 4))
            bound = kernels.emd_bound(x, y, self.squared, group)
            return dual_bound(x, y, self.squared) if bound is None else bound, level
        certified = kernels.emd(x, y, self.squared, limit)
        if certified is not None and certified[1] <= kernels.TOLERANCE:
            return certified[0], level
        if certified is not None and certified[0] > limit and math.isinf(certified[1]):
            return certified[0], Level.PRICED
        ways = cdist(x, y, _cost(self.squared))
        return float(ways[linear_sum_assignment(ways)].mean()), level


def ordered(points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """The points in a spatially coherent order, also without the kernels."""
    return kernels.ordered(points) if kernels.available() else points[_halved(points, np.arange(len(points)))]


def dual_bound(x: Float[np.ndarray, "N 3"], y: Float[np.ndarray, "N 3"], squared: bool) -> float:
    """Lower bound of the EMD of two ordered clouds in NumPy, from the optimal matching of groups and its dual prices.

    Optimal dual prices p of the groups' centres are extended to the points by a c-transform, and any prices of the
    points give a bound, mean_i min_j (c_ij + p_j) - mean_j p_j (kernels/emd.cpp).
    """
    kind, step = _cost(squared), max(1, len(x) // (2 * GROUPS))
    starts = np.arange(0, len(x), step)
    sizes = np.diff(starts, append=len(x))[:, None]
    a, b = (np.add.reduceat(cloud, starts) / sizes for cloud in (x, y))
    costs = cdist(a, b, kind)
    _, partner = linear_sum_assignment(costs)
    paid, price = costs[np.arange(len(a)), partner], np.zeros(len(a))
    for _ in range(100):  # Bellman-Ford; valid prices whenever it stops
        before, price[partner] = price.copy(), (costs + price).min(axis=1) - paid
        if np.array_equal(price, before):
            break
    values = (costs + price).min(axis=1)
    prices = (values[:, None] - cdist(a, y, kind)).max(axis=0)
    ways = cdist(x, y, kind)
    values = (ways + prices).min(axis=1)
    prices = (values[:, None] - ways).max(axis=0)
    error = 1e-12 * float(max(abs(values).max(), abs(prices).max(), abs(ways).max()))
    return max(0.0, float(values.mean() - prices.mean()) - error)


def _halved(points: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Split recursively at the median of the longest side, down to four points."""
    if len(index) <= 4:
        return index
    cloud = points[index]
    index = index[np.argsort(cloud[:, np.ptp(cloud, axis=0).argmax()], kind="stable")]
    middle = (len(index) // 2 + 3) // 4 * 4
    return np.concatenate([_halved(points, index[:middle]), _halved(points, index[middle:])])


def _basis(number: int) -> np.ndarray:
    """The coordinate axes, then random bases, with orthonormal columns."""
    if number == 0:
        return np.eye(3)
    return np.linalg.qr(np.random.default_rng(number).normal(size=(3, 3)))[0]


def _cost(squared: bool) -> str:
    return "sqeuclidean" if squared else "euclidean"
