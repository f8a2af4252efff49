"""Few-step sampling: conditioning distilled models, which embed guidance or predict mean velocities (flow maps).

A flow map predicts the mean velocity u(x_t, r, t) from t down to r along the trajectory of the velocity v:

    (t - r) u(x_t, r, t) = integral of v(x_s, s) over s from r to t,     so that     x_r = x_t - (t - r) u(x_t, r, t)

is exact for any step length, and u(x_t, t, t) = v(x_t, t) (MeanFlow, arXiv 2505.13447, eq. 3). Integrals add up: with
an intermediate time m,

    (t - r) u(x_t, r, t) = (t - m) u(x_t, m, t) + (m - r) u(x_m, r, m),     x_m = x_t - (t - m) u(x_t, m, t),

by which the map is distilled from itself, each span from two of half its length (shortcut models, arXiv 2410.12557,
eq. 4; SplitMeanFlow, arXiv 2507.16884). Sampling in n steps uses the span 1 / n, n = 1, 2, 4, ...
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
    """A distilled model's step conditioning: the part of `ditmoe.model.StepEmbedding` that this package uses."""

    @property
    def most_steps(self) -> int | None:
        """Most steps of a flow map; None: not a flow map."""

    @property
    def weights(self) -> tuple[float, float] | None:
        """Range of the embedded guidance scales; None leaves guidance to the sampler."""


@dataclass(frozen=True)
class Telling:
    """The step conditioning of one sampling run of a distilled model.

    Attributes:
        spans: whether step lengths are embedded.
        weights: range of the guidance scales embedded in the model; None leaves guidance to the sampler.
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
        """Add the step's properties to a condition, for a step from times `told`.

        Args:
            span: of the step.
            known: mask of the times of given places, whose span is zero; None: none.

        Raises:
            ValueError: for a guidance scale outside of the model's range.
        """
        over, weight = None, None
        if self.spans:
            over = torch.full_like(told, span) if known is None else span * (~known).to(told.dtype)
        if self.weights is not None:
            self.check_guidance(guidance)
            weight = torch.full((len(asked),), float(guidance), device=asked.null.device)
        return asked.stepping(span=over, guidance=weight)

    def check_guidance(self, guidance: float) -> None:
        """Raise ValueError for a guidance scale outside of the range."""
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
    """Make the step conditioning of a sampling run; None for a model that is not distilled.

    Args:
        own_times: whether the steps are user-defined rather than even.

    Raises:
        ValueError: one line, if the model does not support these options.
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
    """Numbers of steps that a flow map supports: 1, 2, 4, ..., most."""
    return [2**level for level in range(most.bit_length())]


def check_steps(steps: int, most: int) -> None:
    """Raise ValueError for a number of steps that a flow map does not support."""
    if steps not in (known := numbers_of_steps(most)):
        raise ValueError(f"steps must be one of {', '.join(map(str, known))} for this model, got {steps}")


def check_most_steps(name: str, most: int) -> int:
    """Raise ValueError unless it is a power of two that training can reach."""
    if type(most) is not int or not 1 <= most <= HORIZON or most & (most - 1):
        raise ValueError(f"{name} must be a power of two between 1 and 512, got {most!r}")
    return most
