"""Class labels: one learned vector per class."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from ditmoe.conditioning.base import Conditioning, Embedded
from ditmoe.conditioning.condition import LABEL, Condition
from ditmoe.outside import check_number

Asked = str | int | None
"""By name or number."""


class ClassLabel(Conditioning):
    """One learned vector per class, and a last one for nothing (DiT, arXiv 2212.09748, section 3.1)."""

    words: ClassVar[Mapping[str, str]] = {
        "label": "a class by name or number, none (the null class), random; null takes all classes in turn"
    }

    def __init__(self, hidden_size: int, num_classes: int) -> None:
        super().__init__(num_classes)
        self.table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, condition: Condition) -> Embedded:
        labels = torch.where(condition.null, self.num_classes, condition.values[LABEL])
        return Embedded(self.table(labels), condition.null)

    def read(self, asked: Any) -> Condition:
        """As ever; of what has a caption and no class, nothing is asked for."""
        condition = super().read(asked)
        if LABEL not in condition.values:
            return condition
        return condition.drop(condition.values[LABEL] == self.num_classes)

    def nothing(self, num: int) -> Condition:
        return self.read(torch.full((num,), self.num_classes))

    def ask(
        self, num: int, classes: Sequence[str], generator: torch.Generator | None = None, **words: Any
    ) -> Condition:
        label: Asked | Sequence[Asked] | np.ndarray | Tensor = words.get("label")
        if isinstance(label, Sequence | np.ndarray | Tensor) and not isinstance(label, str):
            each = label if isinstance(label, Sequence) else label.tolist()
            if not each:
                raise ValueError("label must name at least one class, got an empty list")
            return Condition.cat([self.ask(1, classes, generator, label=one) for one in each])
        return self.read(make_labels(classes, num, label, generator))


def make_labels(
    classes: Sequence[str], num: int, label: Asked, generator: torch.Generator | None = None
) -> Int[Tensor, " S"]:
    """Labels to draw: all of one class, of none ("none"), at random ("random"), or every class in turn."""
    check_number("num", num, 1, whole=True)
    classes = list(classes)
    if label is None:
        return torch.arange(num) % len(classes)
    if label == "random":
        return torch.randint(len(classes), (num,), generator=generator)
    index = len(classes) if label == "none" else label_index(classes, label)
    return torch.full((num,), index)


def label_index(classes: Sequence[str], label: str | int) -> int:
    """The index of a class given by name or number.

    Raises:
        ValueError: naming the nearest class, or all of them.
    """
    classes = list(classes)
    if str(label) in classes:
        return classes.index(str(label))
    if str(label).isdigit() and int(label) < len(classes):
        return int(label)
    near = difflib.get_close_matches(str(label), classes, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(classes)}"
    raise ValueError(f"label {label!r} is not a class of this model; {hint}")
