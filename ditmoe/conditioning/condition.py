"""The conditioning input of each sample of a batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

LABEL, NULL, SHOWN = "label", "null", "shown"
"""Keys of class indices among the values, of `Condition.null` among stored tensors, and of the mask of samples that see
their given content."""
SPAN, GUIDANCE = "span", "guidance"
"""Keys of a step's length, in the shape of the times, and of each sample's guidance scale."""


@dataclass(frozen=True)
class Condition:
    """The conditions of B samples; null where `null` is set, whatever the values are.

    Attributes:
        values: name -> (B, ...); sequences of varying length, such as text tokens, are zero-padded at the end to
            (B, L, ...), with a mask (B, L) as another value.
        null: the unconditional samples of classifier-free guidance (arXiv 2207.12598).
        given: separate inputs for a modality's tokens to read, such as the points of a scan, by name, and `SHOWN`, the
            mask of samples that see them, independent of `null`. Empty: nothing is given.
        step: properties of the sampling step for a model distilled for few steps, `SPAN` and `GUIDANCE`. Empty: a step
            of zero length, without guidance.
    """

    values: Mapping[str, Shaped[Tensor, "B *n"]]
    null: Bool[Tensor, " B"]
    given: Mapping[str, Shaped[Tensor, "B ..."]] = field(default_factory=dict)
    step: Mapping[str, Shaped[Tensor, "..."]] = field(default_factory=dict)

    @staticmethod
    def of_labels(labels: Int[Tensor, " B"], num_classes: int) -> "Condition":
        """From class indices; `num_classes` is the null class."""
        return Condition({LABEL: labels}, labels == num_classes)

    def __len__(self) -> int:
        return len(self.null)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Condition":
        """Copy to a device."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def take(self, rows: Int[Tensor, " n"] | Bool[Tensor, " B"] | Sequence[int] | slice) -> "Condition":
        """The conditions of selected samples, in this order."""
        return self._each(lambda x: x[rows])

    def drop(self, which: Bool[Tensor, " B"]) -> "Condition":
        """A copy in which the selected samples are unconditional."""
        return replace(self, null=self.null | which)

    def beside(self, given: Mapping[str, Tensor], hidden: Bool[Tensor, " B"] | None = None) -> "Condition":
        """A copy with given content, hidden from some samples."""
        if not given:
            return self
        shown = torch.ones_like(self.null) if hidden is None else ~hidden
        return replace(self, given={**given, SHOWN: shown})

    def stepping(self, **step: Tensor | None) -> "Condition":
        """A copy for a step: `span=`, `guidance=`; None values are left out."""
        return replace(self, step={name: value for name, value in step.items() if value is not None})

    @property
    def hiding(self) -> "Condition":
        """A copy in which no sample sees its given content."""
        return self.beside(self.given, torch.ones_like(self.null))

    @property
    def nothing(self) -> "Condition":
        """A copy in which all samples are unconditional."""
        return replace(self, null=torch.ones_like(self.null))

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """Concatenate conditions; sequences are padded to the longest.

        Raises:
            ValueError: if they have different kinds of values.
        """
        names = [sorted([*part.values, *part.given, *part.step]) for part in parts]
        if any(own != names[0] for own in names):
            raise ValueError(f"conditions of different kinds cannot be put together: {names}")
        values = {name: _joined([part.values[name] for part in parts]) for name in parts[0].values}
        given = {name: _joined([part.given[name] for part in parts]) for name in parts[0].given}
        step = {name: torch.cat([part.step[name] for part in parts]) for name in parts[0].step}
        return Condition(values, torch.cat([part.null for part in parts]), given, step)

    def labels(self, num_classes: int) -> Int[Tensor, " B"] | None:
        """Class indices, `num_classes` for unconditional samples; None if there are no class indices."""
        if LABEL not in self.values:
            return None
        return torch.where(self.null, num_classes, self.values[LABEL])

    def tensors(self) -> dict[str, Tensor]:
        """As plain tensors, for storage."""
        return {**self.values, NULL: self.null}

    @staticmethod
    def of_tensors(tensors: Mapping[str, Tensor]) -> "Condition":
        """The inverse of `tensors`.

        Raises:
            ValueError: if the numbers of samples differ.
        """
        values = {name: value for name, value in tensors.items() if name != NULL}
        null = tensors.get(NULL)
        if null is None or null.dtype != torch.bool or null.ndim != 1:
            raise ValueError(f"a condition must have {NULL}, one truth value for each sample")
        if wrong := [name for name, x in values.items() if x.ndim < 1 or len(x) != len(null)]:
            raise ValueError(f"a condition of {len(null)} samples must have as many rows of {wrong[0]}")
        return Condition(values, null)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        values, given, step = (
            {name: change(value) for name, value in of.items()} for of in (self.values, self.given, self.step)
        )
        return Condition(values, change(self.null), given, step)


def _joined(parts: Sequence[Shaped[Tensor, "_ ..."]]) -> Shaped[Tensor, "B *n"]:
    if parts[0].ndim > 1 and len({part.shape[1] for part in parts}) > 1:
        longest = max(part.shape[1] for part in parts)
        rest = [0, 0] * (parts[0].ndim - 2)
        parts = [F.pad(part, (*rest, 0, longest - part.shape[1])) for part in parts]
    return torch.cat(list(parts))
