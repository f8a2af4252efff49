"""Standard errors and confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64


@dataclass(frozen=True)
class Estimate:
    """A value with its estimated error.

    Attributes:
        value: the plain estimate from the given sets.
        error: standard error; NaN if the sets are too small to tell.
        bias: expected difference between `value` and that of infinite sets.
        df: degrees of freedom of the error.
    """

    value: float
    error: float
    bias: float = 0.0
    df: int = 9

    @property
    def corrected(self) -> float:
        """The value without its bias, as for infinite sets; a distance may come out slightly below 0."""
        return self.value - self.bias

    def interval(self, low: float = -np.inf) -> tuple[float, float]:
        """95 % interval by Student's t, not below `low`, of the expected value at these counts, bias included."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.df, 0.975)) * self.error
        return max(low, self.value - half), self.value + half


def ratio(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> tuple[float, tuple[float, float]] | None:
    """Ratio of the means of two independent samples of non-negative values, with its 95 % interval.

    By the delta method on the logarithm, since the errors of a ratio are skewed; None if the second mean is 0.
    """
    if not b.mean() > 0:
        return None
    value = float(a.mean() / b.mean())
    squares = (x.var(ddof=1) / len(x) / max(x.mean() ** 2, 1e-300) if len(x) > 1 else np.inf for x in (a, b))
    far = np.exp(1.96 * np.sqrt(sum(squares)))
    return value, (float(value / far), float(value * far) if value else 0.0)


def wilson(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a proportion of `count` independent samples (Wilson, 1927, J. Am. Stat. Assoc. 22).

    The count may be an effective one, which scipy.stats does not take.
    """
    z = 1.96**2 / count
    middle, half = (share + z / 2) / (1 + z), np.sqrt(z * share * (1 - share) + z**2 / 4) / (1 + z)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def mean_of_groups(x: Float[np.ndarray, " n"], group: Int64[np.ndarray, " n"]) -> Estimate:
    """The mean of samples that come in groups, of which the groups are independent.

    Its variance is v = G / (G - 1) sum over groups of (sum of x - mean)^2 / n^2; of one group it is not known.
    """
    mean, num = float(x.mean()), len(np.unique(group))
    squares = float((np.bincount(group, x - mean) ** 2).sum()) / len(x) ** 2
    return Estimate(mean, (squares * num / (num - 1)) ** 0.5 if num > 1 else np.nan, df=num - 1)


def share_of_groups(right: Bool[np.ndarray, " n"], group: Int64[np.ndarray, " n"]) -> tuple[float, float]:
    """A share of samples that come in groups, and the number of independent samples of equal variance, for `wilson`.

    That is p (1 - p) / v, at most n, of v as in `mean_of_groups`. Where nothing varies (all are right, none is, or
    there is one group) it is the number G of groups.
    """
    found = mean_of_groups(right.astype(np.float64), group)
    share, num = found.value, found.df + 1
    if num == 1 or share in (0, 1):
        return share, num
    return share, min(len(right), share * (1 - share) / max(found.error**2, 1e-300))


def of_mean(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """95 % interval of the mean of independent values with such intervals (MOVER; Zou, Donner, 2008, Stat. Med. 27)."""
    middle, num = float(np.mean(values)), len(values)
    below = sum((v - low) ** 2 for v, (low, _) in zip(values, intervals, strict=True)) ** 0.5
    above = sum((high - v) ** 2 for v, (_, high) in zip(values, intervals, strict=True)) ** 0.5
    return middle - below / num, middle + above / num
