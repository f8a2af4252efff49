"""Statistics of paired runs: the same seed, data and noise for both sides of a comparison."""

import statistics
from collections.abc import Mapping, Sequence

from scipy.stats import t as student


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, Student's; no number for one value."""
    n = len(values)
    half = student.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5 if n > 1 else float("nan")
    return statistics.mean(values), half


def p_value(differences: Sequence[float]) -> float:
    """Of the two-sided t test that the mean difference is 0; 1 where fewer than two differences say nothing."""
    n = len(differences)
    if n < 2:
        return 1.0
    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    if not deviation:
        return float(not mean)
    return float(2 * student.sf(abs(mean) / deviation * n**0.5, n - 1))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values of several tests (Holm 1979): those below a level are wrong together at most so often.

    adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)
    """
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p}


def least_detectable(differences: Sequence[float], tests: int, power: float = 0.8) -> float:
    """The true difference that so many pairs of this spread would find in 80 of 100 studies, as one of several tests.

    (t(1 - 0.05 / (2 tests)) + t(power)) s / sqrt(n), both quantiles of n - 1 degrees of freedom: 0.05 / tests is the
    level of Holm's first step, so this is on the safe side.
    """
    n = len(differences)
    if n < 2:
        return float("nan")
    quantiles = student.ppf(1 - 0.025 / tests, n - 1) + student.ppf(power, n - 1)
    return float(quantiles * statistics.stdev(differences) / n**0.5)
