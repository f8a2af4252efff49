"""Which classes are drawn: labels from names and numbers."""

import difflib
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ditmoe.diffusion.seeding import torch_generator
from ditmoe.outside import check_number


def make_labels(
    classes: Sequence[str], num: int, label: str | int | None, seed: int = 0
) -> Int[Tensor, " S"]:
    """Labels to draw: all of one class, of none ("none"), at random ("random"), or every class in turn."""
    check_number("num", num, 1, whole=True)
    classes = list(classes)
    if label is None:
        return torch.arange(num) % len(classes)
    if label == "random":
        return torch.randint(len(classes), (num,), generator=torch_generator("labels", seed))
    index = len(classes) if label == "none" else label_index(classes, label)
    return torch.full((num,), index)


def label_index(classes: list[str], label: str | int) -> int:
    """The index of a class given by name or number.

    Raises:
        ValueError: naming the nearest class, or all of them.
    """
    if str(label) in classes:
        return classes.index(str(label))
    if str(label).isdigit() and int(label) < len(classes):
        return int(label)
    near = difflib.get_close_matches(str(label), classes, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(classes)}"
    raise ValueError(f"label {label!r} is not a class of this model; {hint}")
