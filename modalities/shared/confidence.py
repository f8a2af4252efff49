"""Standard errors and confidence intervals."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


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
