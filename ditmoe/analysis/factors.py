"""Properties of samples that a choice may depend on: the class, or whatever else is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch import Tensor

from ditmoe.conditioning import TEXT, Condition
from ditmoe.conditioning.condition import LABEL
from ditmoe.outside import printable

MOST_WORDS, RARE = 8, 0.2
"""Of lists of words: so many are looked at, each in this share of the samples at least, and missing in as many."""
QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Factor:
    """A property of samples with a few values.

    Attributes:
        of: the value of each sample, an index into `names`.
    """

    name: str
    of: Int[np.ndarray, " S"]
    names: Sequence[str]


def factors_of(asked: Condition, classes: Sequence[str]) -> list[Factor]:
    """Those of what is asked for that take more than one value.

    Classes go by name, other whole numbers by value, words (lists of whole numbers) by whether they are there, numbers
    by quarters. Anything else has no few values.
    """
    found: list[Factor] = []
    for name, value in asked.values.items():
        if name == LABEL:
            labels = asked.labels(len(classes))
            assert labels is not None
            found.append(_named("class", labels.cpu().numpy(), [*map(printable, classes), "any"]))
        elif name != TEXT:  # whose bytes are no words
            found += _of_values(printable(name), value.cpu())
    return [factor for factor in found if len(factor.names) > 1]


def _of_values(name: str, value: Tensor) -> list[Factor]:
    if value.ndim == 1 and not value.is_floating_point():
        return [_named(name, value.numpy())]
    if value.ndim == 1:
        numbers = value.double().numpy()
        place = np.searchsorted(np.quantile(numbers, QUARTERS), numbers)
        return [_named(name, place, [f"quarter {i + 1}" for i in range(4)])]
    if value.ndim == 2 and not value.is_floating_point():
        words, num = value.numpy(), len(value)
        counts = {word: (words == word).any(1).sum() for word in np.unique(words[words != 0]).tolist()}
        common = [word for word, n in counts.items() if RARE * num <= n <= (1 - RARE) * num]
        chosen = sorted(common, key=lambda word: -counts[word])[:MOST_WORDS]
        return [
            _named(f"{name} {word}", (words == word).any(1).astype(int), ["no", "yes"]) for word in chosen
        ]
    return []


def _named(name: str, values: np.ndarray, names: Sequence[str] | None = None) -> Factor:
    """With those values alone that are there."""
    there, of = np.unique(values, return_inverse=True)
    return Factor(name, of, [str(v) if names is None else names[v] for v in there.tolist()])
