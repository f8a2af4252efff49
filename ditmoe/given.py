"""Given parts of a sample that is to be drawn: frames of a clip, a picture around a hole, a scan of a shape.

One mechanism serves all. Given parts are clean, at time 0, and missing parts at the time of the step; the model is
conditioned on both times (Diffusion Forcing, arXiv 2407.01392; Pusa, arXiv 2507.16116), and the loss is over the
missing parts only. In a fraction of the training samples the given parts are hidden, as pure noise at the last time,
which enables

    v = v(hidden) + given_guidance (v(given) - v(hidden)).

A model not trained this way sees given parts at the noise level of the step (replacement: RePaint, arXiv 2201.09865),
as does every model where only part of a token is given.
For samples that are sets, such as points, given content may also be a separate input (`Condition.given`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GIVEN = "given"
"""The folder of a run that holds the given parts of samples, under the names of the sample folders."""


@dataclass(frozen=True)
class Given:
    """Given parts, in the model's space, of B samples, or of one that is broadcast to all.

    Attributes:
        x: clean samples; used where `known`, and everywhere as the starting point for a `strength`.
        known: mask, broadcastable to samples: the output equals x there. None: nowhere.
        places: mask, in a shape of times (`ditmoe.nn.layout`), of completely given positions, whose time the model
            gets as 0; None: the model gets the time of the step everywhere (replacement).
        pieces: mask shaped as `known`, of the given parts of partly given positions: the output equals x there too, but
            the model sees them at the noise level of the step; None: nowhere.
        beside: given content as a separate input of the model, see `Condition.given`.
        strength: fraction of the way to noise at which denoising starts; at 1, only the known parts of x count
            (SDEdit, arXiv 2108.01073).
    """

    x: Float[Tensor, "_ *sample"]
    known: Bool[Tensor, "_ *ones"] | None = None
    places: Bool[Tensor, "_ n"] | None = None
    pieces: Bool[Tensor, "_ *ones"] | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    strength: float = 1.0

    def take(self, rows: Sequence[int] | Tensor) -> "Given":
        """The given parts of selected samples."""
        num = len(rows)

        def of(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return value.expand(num, *value.shape[1:]) if len(value) == 1 else value[rows]

        return self._each(of)

    def to(self, device: torch.device | str) -> "Given":
        """Copy to a device, asynchronously unless that is the host."""
        there = torch.device(device)
        ahead = there.type != "cpu"
        return self._each(lambda value: None if value is None else value.to(there, non_blocking=ahead))

    def untold(self) -> "Given":
        """The same by replacement, for a model not trained with given parts."""
        return replace(self, places=None, beside={})

    def _each(self, change: Callable[[Tensor | None], Any]) -> "Given":
        tensors = {name: change(getattr(self, name)) for name in ("x", "known", "places", "pieces")}
        return replace(self, **tensors, beside={name: change(value) for name, value in self.beside.items()})


@dataclass(frozen=True)
class Parts:
    """A user's given content, as read by a modality.

    Attributes:
        given: for the sampler.
        finish: inserts the user's data, bit-exact, into decoded samples (S, *sample), which may become larger.
        told: messages to the user about changes made to the input.
        more: maps the samples drawn so far, in the model's space, to the given parts of the next turn and a function
            that joins its samples to them; None if no turn is left.
        shown: (1, *sample) the given content in data units, missing parts grey; None: it cannot be displayed.
    """

    given: Given
    finish: Callable[[np.ndarray], np.ndarray] = lambda samples: samples
    told: Sequence[str] = ()
    more: Callable[[Tensor], tuple[Given, Callable[[Tensor], Tensor]] | None] = lambda _: None
    shown: np.ndarray | None = None


def in_turns(
    draw: Callable[[Given | None, int], Float[Tensor, "B *sample"]],
    parts: Parts | None,
    rows: Int[Tensor, " B"],
) -> Float[Tensor, "B *whole"]:
    """Draw a batch, extending it by as many further turns as the given parts ask for (a clip longer than a window).

    Args:
        draw: draws the batch with the given parts of a turn, counted from 0.
        rows: indices of the batch's samples.
    """
    if parts is None:
        return draw(None, 0)
    samples, turn = draw(parts.given.take(rows), 0), 0
    while (following := parts.more(samples)) is not None:
        given, join = following
        turn += 1
        samples = join(draw(given, turn))
    return samples
