"""Mutual information in bits, with a permutation test and a jackknife interval.

Counts within a sample are dependent: its tokens attend to each other, and all its times show the same content. So the
unit is the whole sample: permutations act on samples or on their conditions and bins, never on single tokens, and
standard errors come from leaving out one sample at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Dependence:
    """Mutual information of routing and a factor, for several tables at once (layers, or layers and times).

    Attributes:
        value: plug-in estimate from the counts; positive even without dependence.
        null: the same with the factor permuted, (R, ...); its mean is the bias of `value`.
        error: jackknife standard error of `value`.
        df: degrees of freedom of `error`.
        entropy: of routing, the upper bound of the mutual information.
    """

    value: Float[np.ndarray, "*n"]
    null: Float[np.ndarray, "R *n"]
    error: Float[np.ndarray, "*n"]
    df: int
    entropy: Float[np.ndarray, "*n"]

    @property
    def corrected(self) -> Float[np.ndarray, "*n"]:
        """`value` minus the mean of `null`; without dependence it scatters around zero.

        For a strong dependence the correction takes off a little too much, since permuted samples keep the dependence
        within them.
        """
        return self.value - self.null.mean(0)

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """95 % interval of `corrected`, by Student's t.

        Use `p` to decide whether there is a dependence: near zero mutual information is not normally distributed.
        """
        half = student(self.df) * self.error
        return self.corrected - half, self.corrected + half

    @property
    def p(self) -> Float[np.ndarray, "*n"]:
        """p-value: the share of the permutations, including the identity, that reach `value`."""
        reached = (self.null >= self.value - 1e-12).sum(0)
        return (1 + reached) / (1 + len(self.null))

    def told(self) -> dict[str, object]:
        """The numbers for `analysis.json`."""
        low, high = self.interval
        found = {
            "bits": self.corrected, "interval": np.stack([low, high], -1), "p": self.p, "plug_in": self.value,
            "null_mean": self.null.mean(0), "null_95": np.quantile(self.null, 0.95, axis=0), "entropy": self.entropy,
        }  # fmt: skip
        return {name: value.tolist() for name, value in found.items()}


def student(df: int) -> float:
    """97.5 % quantile of Student's t; NaN without degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.975)) if df > 0 else float("nan")


def mutual_information(table: Float[np.ndarray, "*n F E"]) -> Float[np.ndarray, "*n"]:
    """Mutual information in bits of contingency tables in the last two axes; 0 for an empty table."""
    total = table.sum((-2, -1), keepdims=True)
    joint = table / np.where(total > 0, total, 1)
    apart = entropy(joint.sum(-1)) + entropy(joint.sum(-2))
    return np.asarray(apart - entropy(joint.reshape(*joint.shape[:-2], -1)))


def given(table: Float[np.ndarray, "*n C F E"]) -> Float[np.ndarray, "*n"]:
    """Conditional mutual information of the last two axes, given the axis before them."""
    counts = table.sum((-2, -1))
    total = counts.sum(-1, keepdims=True)
    return np.asarray((mutual_information(table) * counts / np.where(total > 0, total, 1)).sum(-1))


def entropy(shares: Float[np.ndarray, "*n K"]) -> Float[np.ndarray, "*n"]:
    """Entropy in bits of shares that sum to one."""
    logs = np.log2(shares, out=np.zeros(shares.shape), where=shares > 0)
    return np.asarray(-(shares * logs).sum(-1))


def dependence(
    tables: Float[np.ndarray, "S *n F E"],
    permuted: Callable[[np.random.Generator], Float[np.ndarray, "*n F E"]],
    permutations: int,
    rng: np.random.Generator,
    measure: Callable[[np.ndarray], np.ndarray] = mutual_information,
) -> Dependence:
    """The dependence in contingency tables.

    Args:
        tables: one for each sample; their sum is measured.
        permuted: draws such a sum under the null hypothesis.
        permutations: number of draws.
        measure: `mutual_information`, or `given` for tables (S, *n, C, F, E) with a property to condition on.
    """
    table, num = tables.sum(0), len(tables)
    null = np.stack([measure(permuted(rng)) for _ in range(permutations)])
    without = np.stack([measure(table - one) for one in tables])
    error = np.sqrt((num - 1) / num * np.square(without - without.mean(0)).sum(0))
    chosen = table.sum((-3, -2) if measure is given else -2)
    total = chosen.sum(-1, keepdims=True)
    shares = chosen / np.where(total > 0, total, 1)
    return Dependence(measure(table), null, error, num - 1, entropy(shares))


def mean_and_half(values: Float[np.ndarray, "S *n"]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over samples and the half width of its 95 % interval; NaNs are left out."""
    there = np.isfinite(values)
    num = there.sum(0)
    mean = np.where(there, values, 0).sum(0) / np.maximum(num, 1)
    squares = np.where(there, values - mean, 0) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(squares.sum(0) / (num - 1) / num)
    t = np.array([student(n - 1) for n in num.ravel().tolist()]).reshape(num.shape)
    return np.where(num > 0, mean, np.nan), t * error
