"""What is known of the error of a number."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Estimate:
    """A number and what is known of its error.

    Attributes:
        value: as the set at hand has it.
        error: standard error; NaN where the sets are too small to tell.
        bias: by how much `value` is expected to lie above that of infinite sets.
        df: degrees of freedom of the error.
    """

    value: float
    error: float
    bias: float = 0.0
    df: int = 9

    @property
    def corrected(self) -> float:
        """What infinite sets would have; may come out slightly below 0 where a distance is meant."""
        return self.value - self.bias

    def interval(self, low: float = -np.inf) -> tuple[float, float]:
        """95 %, by Student's t, not below `low`; of the expected value at these counts, bias included."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.df, 0.975)) * self.error
        return max(low, self.value - half), self.value + half


def ratio(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> tuple[float, tuple[float, float]] | None:
    """The mean of some independent samples over that of others, none below 0, and its 95 % interval.

    By the delta method, for the logarithm, as a ratio's errors are lopsided; None where the second mean is 0.
    """
    if not b.mean() > 0:
        return None
    value = float(a.mean() / b.mean())
    squares = (x.var(ddof=1) / len(x) / max(x.mean() ** 2, 1e-300) if len(x) > 1 else np.inf for x in (a, b))
    far = np.exp(1.96 * np.sqrt(sum(squares)))
    return value, (float(value / far), float(value * far) if value else 0.0)


def wilson(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a share of `count` independent samples (Wilson, 1927, J. Am. Stat. Assoc. 22).

    The count may be an effective one, which scipy.stats does not take.
    """
    z = 1.96**2 / count
    middle, half = (share + z / 2) / (1 + z), np.sqrt(z * share * (1 - share) + z**2 / 4) / (1 + z)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
