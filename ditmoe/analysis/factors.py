"""Properties of samples that routing may depend on: the class and other conditions."""

import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from ditmoe.conditioning import TEXT, Condition, captions_of
from ditmoe.conditioning.condition import LABEL
from ditmoe.outside import printable

MOST_WORDS, RARE = 8, 0.2
"""Most words that are tested, and the least share of the samples that must have such a word, and that must lack it."""
QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Factor:
    """A property of samples that takes a few values.

    Attributes:
        of: the value of each sample, an index into `names`.
    """

    name: str
    of: Int[np.ndarray, " S"]
    names: Sequence[str]


def factors_of(asked: Condition, classes: Sequence[str]) -> list[Factor]:
    """The factors of a condition that take more than one value.

    Classes are named; other whole numbers count by value; words (of captions, or lists of whole numbers) by presence;
    other numbers by quartile. Values of any other kind are ignored.
    """
    found: list[Factor] = []
    for name, value in asked.values.items():
        if name == LABEL:
            labels = asked.labels(len(classes))
            assert labels is not None
            found.append(_named("class", labels.cpu().numpy(), [*map(printable, classes), "any"]))
        elif name == TEXT:
            captions = captions_of(asked) or []
            found += _of_words(name, [set(re.findall(r"\w+", caption.lower())) for caption in captions])
        else:
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
        return _of_words(name, [set(row) - {0} for row in value.tolist()])
    return []


def _of_words(name: str, words: Sequence[Set[Any]]) -> list[Factor]:
    """One factor for the presence of each common word, the most frequent first."""
    counts = Counter(word for own in words for word in sorted(own))
    num = len(words)
    common = [word for word, n in counts.most_common() if RARE * num <= n <= (1 - RARE) * num]
    return [
        _named(f"{name} {printable(word)}", np.array([int(word in own) for own in words]), ["no", "yes"])
        for word in common[:MOST_WORDS]
    ]


def _named(name: str, values: np.ndarray, names: Sequence[str] | None = None) -> Factor:
    """A factor whose values are those that occur."""
    there, of = np.unique(values, return_inverse=True)
    return Factor(name, of, [str(v) if names is None else names[v] for v in there.tolist()])
