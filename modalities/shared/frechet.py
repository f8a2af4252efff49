"""Distances of two sets in a network's feature space: Fréchet distance, KID, precision and recall.

FID and FVD use different features; this module is independent of them. Rows are samples, columns features.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from ditmoe.outside import TooFewError
from modalities.shared.confidence import Estimate

Features = Float[np.ndarray, "_ F"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of a set of features.

    Attributes:
        mu: (F,) float64.
        sigma: (F, F) float64, divided by num - ddof, with ddof = 1 by default.
        num: number of samples; None if a file does not say.
        factor: (F, S) with factor factorᵀ = sigma, if a set has fewer samples than features.
    """

    mu: Float[np.ndarray, " F"]
    sigma: Float[np.ndarray, "F F"]
    num: int | None = None
    factor: Float[np.ndarray, "F _"] | None = None

    @property
    def rank(self) -> int:
        """Upper bound on the rank of the covariance: n samples span n - 1 directions."""
        return len(self.mu) if self.num is None else min(len(self.mu), self.num - 1)

    @cached_property
    def root(self) -> Float[np.ndarray, "F _"]:
        """A with A Aᵀ = sigma and few columns."""
        if self.factor is not None:
            return self.factor
        values, vectors = np.linalg.eigh(self.sigma)
        return vectors[:, -self.rank :] * np.sqrt(np.maximum(values[-self.rank :], 0))

    @staticmethod
    def of(features: Features, ddof: int = 1) -> "Statistics":
        """Statistics of a whole set."""
        out = moments(features).statistics(ddof)
        if len(features) > len(out.mu):
            return out
        return replace(out, factor=(features - out.mu).T / np.sqrt(len(features) - ddof))


class Moments:
    """Streaming count, mean and scatter of rows in batches, in float64.

    Batches are merged by the formula of Chan, Golub and LeVeque (Technical Report STAN-CS-79-773), which loses
    no digits where the mean is large beside the spread: scatter += scatter_b + δδᵀ n n_b / (n + n_b),
    δ = mean_b - mean.
    """

    def __init__(self, num_features: int) -> None:
        self.num, self.mean = 0, np.zeros(num_features)
        self.scatter = np.zeros((num_features, num_features))

    def add(self, rows: Features) -> None:
        """Merge a batch. Raises ValueError if its shape is wrong or it is not finite."""
        if rows.shape[1] != len(self.mean):
            raise ValueError(f"all batches must have {len(self.mean)} features, got {rows.shape[1]}")
        if not np.isfinite(rows).all():
            raise ValueError(
                "features must be finite, got NaN or infinity: the extractor's weights are damaged"
            )
        if not len(rows):
            return
        wide = rows.astype(np.float64)
        mean = wide.mean(axis=0)
        total, delta = self.num + len(wide), mean - self.mean
        wide -= mean
        self.scatter += wide.T @ wide + np.outer(delta, delta) * (self.num * len(wide) / total)
        self.mean = self.mean + delta * (len(wide) / total)
        self.num = total

    def without(self, part: "Moments") -> "Moments":
        """The moments before `part` was merged in."""
        rest = Moments(len(self.mean))
        rest.num = self.num - part.num
        rest.mean = (self.num * self.mean - part.num * part.mean) / rest.num
        delta = part.mean - rest.mean
        shift = np.outer(delta, delta) * (rest.num * part.num / self.num)
        rest.scatter = self.scatter - part.scatter - shift
        return rest

    def statistics(self, ddof: int = 1) -> Statistics:
        if self.num < 2:
            raise TooFewError(f"a covariance needs at least 2 samples, got {self.num}")
        return Statistics(self.mean, self.scatter / (self.num - ddof), self.num)


def moments(features: Features, chunk: int = 4096) -> Moments:
    """Moments of a whole set, in chunks, so that only one chunk at a time is held in float64."""
    out = Moments(features.shape[1])
    for start in range(0, len(features), chunk):
        out.add(features[start : start + chunk])
    return out


def distance(a: Statistics, b: Statistics) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians, in squared units of the features.

    d² = |μ_a - μ_b|² + tr Σ_a + tr Σ_b - 2 tr (Σ_a^½ Σ_b Σ_a^½)^½ (Dowson and Landau, 1982, J. Multivar. Anal.
    12(3); FID: arXiv 1706.08500). The last trace is the sum of the roots of the eigenvalues of Aᵀ Σ_b A with A Aᵀ =
    Σ_a, a symmetric matrix: real, in float64, and accurate for singular covariances (fewer samples than features),
    unlike a matrix square root of Σ_a Σ_b. The set of lower rank is factored into A.
    """
    if a.mu.shape != b.mu.shape:
        raise ValueError(f"both sets must have as many features, got {len(a.mu)} and {len(b.mu)}")
    if (b.rank, "root" not in vars(b)) < (a.rank, "root" not in vars(a)):
        a, b = b, a
    eigenvalues = np.linalg.eigvalsh(a.root.T @ b.sigma @ a.root)
    cross = np.sqrt(np.maximum(eigenvalues[-min(a.rank, b.rank) :], 0)).sum()  # the others are round-off
    shift = a.mu - b.mu
    return max(0.0, float(shift @ shift + np.trace(a.sigma) + np.trace(b.sigma) - 2 * cross))


def jackknife(
    a: Features | Statistics, b: Features | Statistics, groups: int = 10, seed: int = 0, ddof: int = 1
) -> Estimate:
    """Fréchet distance with its standard error and bias, by the delete-a-group jackknife.

    Of G random groups, θ_g is the distance without group g: se² = (G - 1)/G Σ (θ_g - θ̄)², bias = (G - 1)(θ̄ - θ)
    (Shao and Wu, 1989, Ann. Statist. 17(3)). Groups are left out of both sets in turn, and se² and bias add up; a set
    given as statistics counts as exact. Fewer than 2 groups: no error.

    The bias is the part that falls as 1/S, and `corrected` the value without it, which FID∞ (arXiv 1911.07023)
    extrapolates from a line over 1/S, with more noise. Both are valid from about twice as many samples as features.
    """
    whole = [side if isinstance(side, Statistics) else Statistics.of(side, ddof) for side in (a, b)]
    value, variance, bias, used = distance(*whole), 0.0, 0.0, groups
    if groups < 2 or any(len(side) < 4 for side in (a, b) if not isinstance(side, Statistics)):
        return Estimate(value, np.nan)
    for side, other in ((a, whole[1]), (b, whole[0])):
        if isinstance(side, Statistics):
            continue
        G = min(groups, len(side) // 2)
        left = np.array([distance(rest, other) for rest in _left_out(side, G, seed, ddof)])
        variance += (G - 1) / G * float(((left - left.mean()) ** 2).sum())
        bias += (G - 1) * (float(left.mean()) - value)
        used = min(used, G)
    return Estimate(value, float(np.sqrt(variance)), bias, used - 1)


def _left_out(features: Features, groups: int, seed: int, ddof: int) -> Iterator[Statistics]:
    order, whole = np.random.default_rng(seed).permutation(len(features)), moments(features)
    for g in range(groups):
        if len(features) <= features.shape[1]:
            yield Statistics.of(np.delete(features, order[g::groups], axis=0), ddof)
        else:
            yield whole.without(moments(features[order[g::groups]])).statistics(ddof)


def halves(num: int, seed: int = 0) -> tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]:
    """Indices of two disjoint random halves, for the distance of real samples from real ones."""
    order = np.random.default_rng(seed).permutation(num)
    return np.sort(order[: num // 2]), np.sort(order[num // 2 : 2 * (num // 2)])


def kid(a: Features, b: Features, block: int = 1000, seed: int = 0) -> Estimate:
    """Squared maximum mean discrepancy with k(x, y) = (x·y / F + 1)³: KID, for Inception features.

    The mean of the unbiased estimate (zero on average for equal distributions, hence sometimes negative) over
    disjoint random blocks of `block` samples of each set, and its standard error from their spread (arXiv
    1801.01401). Sets of fewer than ten such blocks are cut into ten. No units.
    """
    least = min(len(a), len(b))
    if least < 2:
        raise TooFewError(f"a kernel distance needs at least 2 samples of each set, got {least}")
    size = max(2, min(block, least // 10))
    rng, num = np.random.default_rng(seed), least // size
    rows = [rng.permutation(len(side))[: num * size].reshape(num, size) for side in (a, b)]
    found = [_mmd(a[i].astype(np.float64), b[j].astype(np.float64)) for i, j in zip(*rows, strict=True)]
    error = float(np.std(found, ddof=1) / np.sqrt(num)) if num > 1 else np.nan
    return Estimate(float(np.mean(found)), error, df=max(1, num - 1))


def _mmd(x: Features, y: Features) -> float:
    """1/(m(m-1)) Σ_{i≠j} [k(x_i, x_j) + k(y_i, y_j)] - 2/m² Σ k(x_i, y_j)."""
    m, F = x.shape
    K_xx, K_yy, K_xy = ((p @ q.T / F + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = (K_xx.sum() - np.trace(K_xx) + K_yy.sum() - np.trace(K_yy)) / (m * (m - 1))
    return float(within - 2 * K_xy.mean())


def precision_recall(real: Features, generated: Features, k: int = 3) -> tuple[float, float]:
    """Fraction of generated samples that look real, and of real ones that are covered (arXiv 1904.06991).

    The manifold of a set is the union of balls around its samples, each reaching to the k-th nearest other
    sample of the set. Precision: generated samples within the real manifold; recall: the reverse. 0 to 1.
    """
    least = min(len(real), len(generated))
    if least <= k:
        raise ValueError(f"precision and recall need more than k = {k} samples of each set, got {least}")

    def covered(points: Features, manifold: Features) -> float:
        # Index 0 is the sample itself.
        reach = [np.partition(d, k, axis=1)[:, k] for d in squared_distances(manifold, manifold)]
        radii = np.concatenate(reach)
        return float(
            np.concatenate([(d <= radii).any(axis=1) for d in squared_distances(points, manifold)]).mean()
        )

    return covered(generated, real), covered(real, generated)


def squared_distances(x: Features, y: Features, chunk: int = 512) -> Iterator[Float[np.ndarray, "_ M"]]:
    """Squared distances of all rows of x from all rows of y, in chunks of rows of x, clipped at 0."""
    wide = y.astype(np.float64)
    norms = (wide**2).sum(axis=1)
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk].astype(np.float64)
        yield np.maximum((part**2).sum(axis=1)[:, None] + norms - 2 * part @ wide.T, 0)


def inception_score(probabilities: Float[np.ndarray, "S K"], split: int = 5000) -> Estimate:
    """exp E_x KL(p(y|x) ‖ p(y)), 1 to K classes, averaged over consecutive splits (arXiv 1606.03498).

    p(y) is the mean over a split, so samples of a class must not lie together: ADM's evaluator takes 5,000 at a
    time. An incomplete last split is left out, unless it is the only one; few samples score low.
    """
    from scipy.special import rel_entr

    ends = range(split, len(probabilities) + 1, split) or [len(probabilities)]
    parts = [probabilities[max(0, end - split) : end].astype(np.float64) for end in ends]
    scores = [float(np.exp(rel_entr(p, p.mean(axis=0)).sum(axis=1).mean())) for p in parts]
    error = float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else np.nan
    return Estimate(float(np.mean(scores)), error, df=max(1, len(scores) - 1))
