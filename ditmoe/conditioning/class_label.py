"""Class labels: one learned vector per class."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from ditmoe.conditioning.base import Conditioning, Embedded
from ditmoe.conditioning.condition import LABEL, Condition
from ditmoe.outside import check_number, shown, tell

Asked = str | int | None
"""A label, by name or number."""
NONE, RANDOM = "none", "random"
"""Reserved labels, even if a class has that name: such a class is written `#2`, by its number."""


class ClassLabel(Conditioning):
    """One learned vector per class, and a last one for the null class (DiT, arXiv 2212.09748, section 3.1)."""

    words: ClassVar[Mapping[str, str]] = {
        "label": "a class by name or number (#2 always is one), none (the null class), random; null takes all in turn"
    }

    def __init__(self, hidden_size: int, num_classes: int) -> None:
        super().__init__(num_classes)
        self.table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, condition: Condition) -> Embedded:
        labels = torch.where(condition.null, self.num_classes, condition.values[LABEL])
        return Embedded(self.table(labels), condition.null)

    def read(self, asked: Any) -> Condition:
        """As in the base class; samples with a caption but no class become unconditional."""
        condition = super().read(asked)
        if LABEL not in condition.values:
            return condition
        return condition.drop(condition.values[LABEL] == self.num_classes)

    def nothing(self, num: int) -> Condition:
        return self.read(torch.full((num,), self.num_classes))

    def ask(
        self, num: int, classes: Sequence[str], generator: torch.Generator | None = None, **words: Any
    ) -> Condition:
        label: Any = words.get("label")
        if isinstance(label, np.ndarray | Tensor):
            label = label.tolist()  # a number, if it has no axis
        if isinstance(label, Sequence) and not isinstance(label, str):
            each = label
            if not each:
                raise ValueError("label must name at least one class, got an empty list")
            return Condition.cat([self.ask(1, classes, generator, label=one) for one in each])
        return self.read(make_labels(classes, num, label, generator))


def make_labels(
    classes: Sequence[str], num: int, label: Asked, generator: torch.Generator | None = None
) -> Int[Tensor, " S"]:
    """Labels to sample: all of one class, the null class ("none"), random ones ("random"), or every class in turn.

    Prints a line if a class has the name of one of these words.
    """
    check_number("num", num, 1, whole=True)
    classes = list(classes)
    if label is None:
        return torch.arange(num) % len(classes)
    if label in (NONE, RANDOM) and label in classes:
        meant = "no class" if label == NONE else "classes at random"
        tell(
            f"note: label={label} takes {meant}; the class called {label} is label='#{classes.index(label)}'"
        )
    if label == RANDOM:
        return torch.randint(len(classes), (num,), generator=generator)
    index = len(classes) if label == NONE else label_index(classes, label)
    return torch.full((num,), index)


def label_index(classes: Sequence[str], label: str | int) -> int:
    """The index of a class given by name or number, `#2` by its number whatever classes are called.

    Raises:
        ValueError: naming the nearest class, or all of them.
    """
    classes = list(classes)
    if re.fullmatch("#[0-9]{1,9}", str(label)) and int(str(label)[1:]) < len(classes):
        return int(str(label)[1:])
    if str(label) in classes:
        return classes.index(str(label))
    if str(label).isdecimal() and int(label) < len(classes):
        return int(label)
    near = difflib.get_close_matches(str(label), classes, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(classes)}"
    raise ValueError(f"label {shown(label)} is not a class of this model; {hint}")


def label_of(classes: Sequence[str], index: int) -> str:
    """The label of a class: its name, or `#2` if its name would be read as another label."""
    name = str(classes[index])
    own = name not in ("", NONE, RANDOM, "null") and label_index(classes, name) == index
    return name if own else f"#{index}"
