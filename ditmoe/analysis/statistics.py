"""How much a choice depends on something: mutual information, against what chance gives, with an interval.

Numbers are in bits. What is counted of one sample is dependent (its tokens see each other, all its times show the same
content), so units are whole samples: permutations move samples, or what a sample is shown as, never single tokens, and
errors come from leaving out one sample after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Dependence:
    """Mutual information of a choice and a factor, of several tables at once (layers, or layers and times).

    Attributes:
        value: as the counts have it; above zero even where there is none.
        null: of the same counts with the factor permuted, (R, ...); its mean is the bias.
        error: standard error of `value`, by leaving out samples.
        df: degrees of freedom of the error.
        entropy: of the choice, the most that could be known of it.
    """

    value: Float[np.ndarray, "*n"]
    null: Float[np.ndarray, "R *n"]
    error: Float[np.ndarray, "*n"]
    df: int
    entropy: Float[np.ndarray, "*n"]

    @property
    def corrected(self) -> Float[np.ndarray, "*n"]:
        """Above what chance gives; where there is no dependence it scatters around zero, on both sides.

        Of a strong one a little too much is taken off, since permuted samples keep what they have of it within them.
        """
        return self.value - self.null.mean(0)

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """95 % of `corrected`, by Student's t. Whether there is a dependence at all says `p`, not this: near zero
        mutual information is not normally distributed.
        """
        half = student(self.df) * self.error
        return self.corrected - half, self.corrected + half

    @property
    def p(self) -> Float[np.ndarray, "*n"]:
        """Share of the permutations, the true order among them, that reach `value`."""
        reached = (self.null >= self.value - 1e-12).sum(0)
        return (1 + reached) / (1 + len(self.null))

    def told(self) -> dict[str, object]:
        """As numbers for a record."""
        low, high = self.interval
        found = {
            "bits": self.corrected, "interval": np.stack([low, high], -1), "p": self.p, "plug_in": self.value,
            "null_mean": self.null.mean(0), "null_95": np.quantile(self.null, 0.95, axis=0), "entropy": self.entropy,
        }  # fmt: skip
        return {name: value.tolist() for name, value in found.items()}


def student(df: int) -> float:
    """Student's t, 97.5 %."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.975)) if df > 0 else float("nan")


def mutual_information(table: Float[np.ndarray, "*n F E"]) -> Float[np.ndarray, "*n"]:
    """Of what the last two axes count, in bits; 0 where nothing is counted."""
    total = table.sum((-2, -1), keepdims=True)
    joint = table / np.where(total > 0, total, 1)
    apart = entropy(joint.sum(-1)) + entropy(joint.sum(-2))
    return np.asarray(apart - entropy(joint.reshape(*joint.shape[:-2], -1)))


def given(table: Float[np.ndarray, "*n C F E"]) -> Float[np.ndarray, "*n"]:
    """Mutual information of what the last two axes count, given the value on the axis before them."""
    counts = table.sum((-2, -1))
    total = counts.sum(-1, keepdims=True)
    return np.asarray((mutual_information(table) * counts / np.where(total > 0, total, 1)).sum(-1))


def entropy(shares: Float[np.ndarray, "*n K"]) -> Float[np.ndarray, "*n"]:
    """Of shares that sum to one, in bits."""
    logs = np.log2(shares, out=np.zeros(shares.shape), where=shares > 0)
    return np.asarray(-(shares * logs).sum(-1))


def dependence(
    tables: Float[np.ndarray, "S *n F E"],
    permuted: Callable[[np.random.Generator], Float[np.ndarray, "*n F E"]],
    permutations: int,
    rng: np.random.Generator,
    measure: Callable[[np.ndarray], np.ndarray] = mutual_information,
) -> Dependence:
    """Mutual information of what tables count.

    Args:
        tables: of each sample; their sum is what is measured.
        permuted: draws that sum anew, as it could be if the choice did not depend on the factor.
        measure: of tables, `mutual_information`, or `given` a third property, (S, *n, C, F, E).
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
    """The mean over samples, and half of its 95 % interval; NaN are left out."""
    there = np.isfinite(values)
    num = there.sum(0)
    mean = np.where(there, values, 0).sum(0) / np.maximum(num, 1)
    squares = np.where(there, values - mean, 0) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(squares.sum(0) / (num - 1) / num)
    t = np.array([student(n - 1) for n in num.ravel().tolist()]).reshape(num.shape)
    return np.where(num > 0, mean, np.nan), t * error
