"""What is there already of a sample that is to be drawn: frames of a clip, a picture around a hole, a scan of a shape.

One mechanism serves all. What is given stands at time 0, clean, and what is missing at the time of the step; the model
is told both (Diffusion Forcing, arXiv 2407.01392; Pusa, arXiv 2507.16116), so that the loss counts what is missing
alone. In a share of the training samples what is given is hidden, pure noise at the last time, which trains

    v = v(hidden) + given_guidance (v(given) - v(hidden)).

A model that was not trained so sees what is given at the noise of the step (replacement: RePaint, arXiv 2201.09865),
as every model does where a part of a token is given.
Where samples are sets, such as points, what is given may also lie beside the sample (`Condition.given`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GIVEN = "given"
"""The folder of a run with what was given to samples, by the names of their folders."""


@dataclass(frozen=True)
class Given:
    """What is there already, in the model's space, of B samples, or of one that stands for all.

    Attributes:
        x: clean; what counts of it is where `known`, or all of it as the start for a `strength`.
        known: shaped to multiply samples: what comes out as it is in x. None: nothing.
        places: which times, in a shape of `ditmoe.nn.layout`, are those of places that are given in all, told to a
            model as 0; None: the model is told the time of the step everywhere (replacement).
        pieces: shaped as `known`, what is given of places that are not given in all: it too comes out as it is in x,
            and the model sees it at the noise of the step; None: nothing.
        beside: what the model reads beside the sample, see `Condition.given`.
        strength: share of the way to noise from which the drawing starts; 1 forgets all of x but what is known
            (SDEdit, arXiv 2108.01073).
    """

    x: Float[Tensor, "_ *sample"]
    known: Bool[Tensor, "_ *ones"] | None = None
    places: Bool[Tensor, "_ n"] | None = None
    pieces: Bool[Tensor, "_ *ones"] | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    strength: float = 1.0

    def take(self, rows: Sequence[int] | Tensor) -> "Given":
        """That of some samples."""
        num = len(rows)

        def of(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return value.expand(num, *value.shape[1:]) if len(value) == 1 else value[rows]

        return self._each(of)

    def to(self, device: torch.device | str) -> "Given":
        """The same on a device, which the host does not wait for unless it is the host."""
        there = torch.device(device)
        ahead = there.type != "cpu"
        return self._each(lambda value: None if value is None else value.to(there, non_blocking=ahead))

    def untold(self) -> "Given":
        """The same for a model that was not trained with given parts: by replacement."""
        return replace(self, places=None, beside={})

    def _each(self, change: Callable[[Tensor | None], Any]) -> "Given":
        tensors = {name: change(getattr(self, name)) for name in ("x", "known", "places", "pieces")}
        return replace(self, **tensors, beside={name: change(value) for name, value in self.beside.items()})


@dataclass(frozen=True)
class Parts:
    """What a person gave, as a modality understood it.

    Attributes:
        given: for the sampler.
        finish: puts the person's own data, to the bit, into decoded samples (S, *sample), which may grow by it.
        told: lines for the person, of what was changed on the way.
        more: of some samples as far as they are drawn, in the model's space, what is given of these for the next round,
            and how to join that round's samples to them; None where there is none left.
        shown: (1, *sample) what was given, in data units, what is to be drawn of it grey; None: nobody can look at it.
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
    """Draw a batch, and go on from it as often as what is given asks for another turn (a clip longer than a window).

    Args:
        draw: draws the batch with what is given in a turn, counted from 0.
        rows: which samples are the batch.
    """
    if parts is None:
        return draw(None, 0)
    samples, turn = draw(parts.given.take(rows), 0), 0
    while (following := parts.more(samples)) is not None:
        given, join = following
        turn += 1
        samples = join(draw(given, turn))
    return samples
