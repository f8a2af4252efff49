"""Memorisation: distances of generated shapes to the training set, compared with those of held-out shapes."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from modalities.pointcloud.metrics import confidence

PERCENTILES = {"nearest-train/cd/p5": 5, "nearest-train/cd": 50, "nearest-train/cd/p95": 95}
HELD_OUT = 10
"""A shape is novel if it is farther from the training set than this percentile of held-out shapes."""

Nearest = Float[np.ndarray, " _"]
"""Chamfer distance of each shape to its nearest training shape."""

Statistic = Callable[[np.ndarray, np.ndarray], Any]
"""A statistic over the last axis, of one list of shapes or of many."""


def novelty(generated: Nearest, held_out: Nearest) -> float:
    """Fraction of generated shapes farther from the training set than the nearest tenth of held-out ones.

    |{s : min_t CD(s, t) > q}| / S, q the 10th percentile of min_t CD(r, t) over the held-out shapes r. New
    real shapes have 0.9 by construction, copies 0; more than 0.9 is not better: noise is novel too.
    """
    return float(_novelty(generated, held_out))


def nearest_train(generated: Nearest, held_out: Nearest) -> dict[str, float]:
    """Percentiles 5, 50 and 95 of the Chamfer distance to the nearest training shape, and `novelty`.

    The low percentile reveals a few copies among new shapes, the high one outliers.
    """
    return {name: float(statistic(generated, held_out)) for name, statistic in _STATISTICS.items()}


def intervals(generated: Nearest, held_out: Nearest, seed: int) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals of `nearest_train`; novelty's as of a fraction, with the threshold also resampled."""
    out = {
        name: confidence.bootstrap(statistic, (generated, held_out), seed)
        for name, statistic in _STATISTICS.items()
    }
    share = confidence.of_fraction(novelty(generated, held_out), 0.0, len(generated))
    low, high = out["novelty"]
    return out | {"novelty": (min(low, share[0]), max(high, share[1]))}


def _novelty(generated: np.ndarray, held_out: np.ndarray) -> Any:
    limit = np.percentile(held_out, HELD_OUT, axis=-1, keepdims=True)
    return (generated > limit).mean(axis=-1)


def _percentile(q: float) -> Statistic:
    return lambda generated, held_out: np.percentile(generated, q, axis=-1)


_STATISTICS: Mapping[str, Statistic] = {
    **{name: _percentile(q) for name, q in PERCENTILES.items()},
    "novelty": _novelty,
}
