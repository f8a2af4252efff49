"""The value that says what is asked for, of each sample of a batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

LABEL, NULL, SHOWN = "label", "null", "shown"
"""Names of class indices among the values, of `Condition.null` among the tensors on a disk, and of the samples that see
what is given beside them."""
SPAN, GUIDANCE = "span", "guidance"
"""Of a step: how much time it leads over, in the shape of the times; and the weight of guidance of each sample."""


@dataclass(frozen=True)
class Condition:
    """What is asked for, of each of B samples; nothing where `null` says so, whatever the values are.

    Attributes:
        values: name -> (B, ...); a list of any length for each sample, such as tokens of text, is padded with zeros
            behind its end to (B, L, ...), and a mask (B, L) beside it says where it ends.
        null: which samples ask for nothing: the unconditional ones of classifier-free guidance (arXiv 2207.12598).
        given: what lies beside the samples for a modality's tokens to read, such as the points of a scan, by name, and
            `SHOWN`, which samples see it; `null` hides nothing of it. Empty: nothing is given.
        step: what a model that was distilled for few steps is told of the sampler's step, `SPAN` and `GUIDANCE`. Empty:
            a step of no length, and what is asked for without guidance.
    """

    values: Mapping[str, Shaped[Tensor, "B *n"]]
    null: Bool[Tensor, " B"]
    given: Mapping[str, Shaped[Tensor, "B ..."]] = field(default_factory=dict)
    step: Mapping[str, Shaped[Tensor, "..."]] = field(default_factory=dict)

    @staticmethod
    def of_labels(labels: Int[Tensor, " B"], num_classes: int) -> "Condition":
        """Class indices; `num_classes` asks for nothing."""
        return Condition({LABEL: labels}, labels == num_classes)

    def __len__(self) -> int:
        return len(self.null)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Condition":
        """The same on a device."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def take(self, rows: Int[Tensor, " n"] | Bool[Tensor, " B"] | Sequence[int] | slice) -> "Condition":
        """That of some samples, in this order."""
        return self._each(lambda x: x[rows])

    def drop(self, which: Bool[Tensor, " B"]) -> "Condition":
        """The same, but for samples that are to ask for nothing."""
        return replace(self, null=self.null | which)

    def beside(self, given: Mapping[str, Tensor], hidden: Bool[Tensor, " B"] | None = None) -> "Condition":
        """The same with what is given beside the samples, which some of them do not see."""
        if not given:
            return self
        shown = torch.ones_like(self.null) if hidden is None else ~hidden
        return replace(self, given={**given, SHOWN: shown})

    def stepping(self, **step: Tensor | None) -> "Condition":
        """The same for a step: `span=`, `guidance=`; None says nothing of it."""
        return replace(self, step={name: value for name, value in step.items() if value is not None})

    @property
    def hiding(self) -> "Condition":
        """The same, of samples that see nothing of what is given beside them."""
        return self.beside(self.given, torch.ones_like(self.null))

    @property
    def nothing(self) -> "Condition":
        """As many samples that ask for nothing."""
        return replace(self, null=torch.ones_like(self.null))

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """Those of all samples, one part after the other; lists are padded to the longest.

        Raises:
            ValueError: if they ask for different kinds of things.
        """
        names = [sorted([*part.values, *part.given, *part.step]) for part in parts]
        if any(own != names[0] for own in names):
            raise ValueError(f"conditions of different kinds cannot be put together: {names}")
        values = {name: _joined([part.values[name] for part in parts]) for name in parts[0].values}
        given = {name: _joined([part.given[name] for part in parts]) for name in parts[0].given}
        step = {name: torch.cat([part.step[name] for part in parts]) for name in parts[0].step}
        return Condition(values, torch.cat([part.null for part in parts]), given, step)

    def labels(self, num_classes: int) -> Int[Tensor, " B"] | None:
        """Class indices, `num_classes` where nothing is asked for; None where it is no question of classes."""
        if LABEL not in self.values:
            return None
        return torch.where(self.null, num_classes, self.values[LABEL])

    def tensors(self) -> dict[str, Tensor]:
        """As plain tensors, to be stored."""
        return {**self.values, NULL: self.null}

    @staticmethod
    def of_tensors(tensors: Mapping[str, Tensor]) -> "Condition":
        """From what `tensors` gave.

        Raises:
            ValueError: if they are not of equally many samples.
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
