"""Few steps: how a model is told of them that embeds guidance, or predicts mean velocities (a flow map).

A flow map gives the mean velocity u(x_t, r, t) on the way from t down to r, along the path that the velocity v leads:

    (t - r) u(x_t, r, t) = integral of v(x_s, s) over s from r to t,     so that     x_r = x_t - (t - r) u(x_t, r, t)

is exact however long the step is, and u(x_t, t, t) = v(x_t, t) (MeanFlow, arXiv 2505.13447, eq. 3). Means add up: with
a time m between,

    (t - r) u(x_t, r, t) = (t - m) u(x_t, m, t) + (m - r) u(x_m, r, m),     x_m = x_t - (t - m) u(x_t, m, t),

by which the map is learnt from itself, each span from two of half its length (shortcut models, arXiv 2410.12557, eq. 4;
SplitMeanFlow, arXiv 2507.16884). A drawing in n steps takes the spans 1 / n, n = 1, 2, 4, ...
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.conditioning import Condition
from ditmoe.diffusion.process import HORIZON


@runtime_checkable
class Embeds(Protocol):
    """What a distilled model is told of a step: `ditmoe.model.StepEmbedding`, of which this room knows no more."""

    @property
    def most_steps(self) -> int | None:
        """Of a flow map; None is none."""

    @property
    def weights(self) -> tuple[float, float] | None:
        """Range of the weights of guidance that are embedded; None leaves guidance to the sampler."""


@dataclass(frozen=True)
class Telling:
    """What a drawing tells a distilled model.

    Attributes:
        spans: how far each step leads.
        weights: range of those of guidance that are inside the model; None leaves guidance to the sampler.
    """

    spans: bool
    weights: tuple[float, float] | None

    def __call__(
        self,
        asked: Condition,
        told: Float[Tensor, "*t"],
        span: float,
        guidance: float,
        known: Tensor | None = None,
    ) -> Condition:
        """What is asked for, of a step from these times.

        Args:
            span: of the step.
            known: which of the times are of places that are given, which it does not move; None: none.

        Raises:
            ValueError: for guidance that the model does not know.
        """
        over, weight = None, None
        if self.spans:
            over = torch.full_like(told, span) if known is None else span * (~known).to(told.dtype)
        if self.weights is not None:
            self.check_guidance(guidance)
            weight = torch.full((len(asked),), float(guidance), device=asked.null.device)
        return asked.stepping(span=over, guidance=weight)

    def check_guidance(self, guidance: float) -> None:
        """Raises ValueError for a weight outside of the range."""
        low, high = self.weights or (guidance, guidance)
        if not low <= guidance <= high:
            raise ValueError(
                f"guidance must lie between {low:g} and {high:g}, for which this model was distilled, got "
                f"{guidance:g}"
            )


def telling(
    model: Any,
    scheduler: Any,
    steps: int,
    guidance: float,
    interval: Sequence[float],
    negative: Condition | None,
    own_times: bool = False,
) -> Telling | None:
    """How a model is to be told of the steps of a drawing; None for one that was not distilled.

    Args:
        own_times: steps are not even, but a person's own.

    Raises:
        ValueError: one line, if such a model was not made for what is asked.
    """
    embeds: Embeds | None = getattr(model, "step_embedding", None)
    if embeds is None:
        return None
    if embeds.most_steps is not None:
        from ditmoe.diffusion.schedulers import follows_map

        if not follows_map(scheduler):
            raise ValueError(
                f"scheduler must be flow_map: this model gives mean velocities, got {type(scheduler).__name__}"
            )
        if own_times:
            raise ValueError("timesteps and sigmas must be left out: this model was distilled for even steps")
        check_steps(steps, embeds.most_steps)
    tell = Telling(embeds.most_steps is not None, embeds.weights)
    if embeds.weights is None:
        return tell
    tell.check_guidance(guidance)
    if tuple(interval) != (0, HORIZON):
        raise ValueError(
            f"interval must be [0, {HORIZON}]: this model has guidance inside, with its times, got {list(interval)}"
        )
    if negative is not None:
        raise ValueError(
            "negative must be left out: guidance was distilled into this model, away from nothing else"
        )
    return tell


def numbers_of_steps(most: int) -> list[int]:
    """Numbers of steps that a flow map was made for: 1, 2, 4, ..., most."""
    return [2**level for level in range(most.bit_length())]


def check_steps(steps: int, most: int) -> None:
    """Raises ValueError for a number of steps that a flow map was not made for."""
    if steps not in (known := numbers_of_steps(most)):
        raise ValueError(f"steps must be one of {', '.join(map(str, known))} for this model, got {steps}")


def check_most_steps(name: str, most: int) -> int:
    """Raises ValueError unless it is a power of two that training can reach."""
    if type(most) is not int or not 1 <= most <= HORIZON or most & (most - 1):
        raise ValueError(f"{name} must be a power of two between 1 and 512, got {most!r}")
    return most
