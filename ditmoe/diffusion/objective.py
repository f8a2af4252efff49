"""The training objective: the prediction's error, weighted over time, plus the routers' losses.

With x_t = a x0 + b e and the target p x0 + q e, an error d of the network's output at a given x_t is an error of x0 of

    d b / (p b - q a),        so that   |x0 error|^2 = |output error|^2 b^2 / (p b - q a)^2,

whatever the prediction type: a, b, p, q are derived from the process. A weighting w(snr) of the error of x0,
snr = a^2 / b^2, thus becomes the factor w b^2 / (p b - q a)^2 on the error of the output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.diffusion.process import Process
from ditmoe.outside import check_number

WEIGHTINGS = ("uniform", "min_snr", "sigmoid")


@runtime_checkable
class Routed(Protocol):
    """A layer's contribution to the loss: the part of `ditmoe.moe.Routing` that this package uses."""

    @property
    def losses(self) -> Mapping[str, Any]:
        """Losses by name, each a value and its coefficient."""

    @property
    def aux_prediction(self) -> Tensor | None:
        """An auxiliary prediction of the same target."""

    @property
    def aux_coefficient(self) -> float:
        """Coefficient of its error."""


@dataclass(frozen=True)
class Prediction:
    """A model's output on this process's part of a batch, with its target.

    Attributes:
        output, target: (R, *sample); (1, T, P) if samples are packed.
        t: times, broadcastable to samples: one per sample, or per position along one of their axes.
        share: number of unmasked values over all processes, divided by the number of processes.
        mask: broadcastable to samples, 1 for values that count in the loss, else 0; None: all count.
        routings: of the layers with experts.
    """

    output: Float[Tensor, "..."]
    target: Float[Tensor, "..."]
    t: Float[Tensor, "..."]
    share: float
    mask: Float[Tensor, "..."] | None = None
    routings: Sequence[Routed] = ()


@dataclass(frozen=True)
class Losses:
    """The result of an objective.

    Attributes:
        total: the optimised loss; its mean over the processes is that of the whole batch.
        parts: by name, for the log, detached: "loss" is the weighted error of the prediction; the routers' losses, by
            their own names, are means over the layers without coefficients.
        t: the times.
        each: like `t`: the mean error of the values at each time, before the weighting over time.
        counted: like `t`: the number of these values.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]
    t: Float[Tensor, "..."]
    each: Float[Tensor, "..."]
    counted: Float[Tensor, "..."]


@dataclass(frozen=True)
class Objective:
    """Masked mean of w(t) |output - target|^2, plus the routers' losses.

    Routers' losses are summed over the layers times their coefficients, as in DiT-MoE, and so are errors of auxiliary
    predictions, measured like the output's. To add an objective, write a class, or a subclass that overrides `distance`
    or `weights`, and a YAML in `configs/objective/`.

    Args:
        process: defines times and targets.
        weighting: w over time, a weight of the error of x0, converted to the prediction type:
            "uniform" is none, w = 1 on the error of the output;
            "min_snr" is min(snr, gamma) (arXiv 2303.09556);
            "sigmoid" is gamma sigmoid(log snr - log gamma) = 1 / (1 / snr + 1 / gamma), a smooth variant (arXiv
            2303.00848).
        gamma: signal-to-noise ratio above which the weight no longer grows.
        huber: c of sqrt(d^2 + c^2) - c in place of d^2, linear beyond c (pseudo-Huber, arXiv 2310.14189, here per
            value d); None: off.

    Raises:
        ValueError: if an option is out of range.
    """

    process: Process
    weighting: str = "uniform"
    gamma: float = 5.0
    huber: float | None = None

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            names = ", ".join(WEIGHTINGS)
            raise ValueError(f"objective.weighting must be one of {names}, got {self.weighting!r}")
        check_number("objective.gamma", self.gamma, above=0)
        check_number("objective.huber", 1.0 if self.huber is None else self.huber, above=0)

    def __call__(self, prediction: Prediction) -> Losses:
        """Compute the losses of a prediction."""
        weights = self.weights(prediction.t)
        numbers = self._numbers(prediction, prediction.output)
        total = _mean(numbers, weights, prediction.share)
        parts = {"loss": total.detach()}
        routings = prediction.routings
        for name in dict.fromkeys(name for routing in routings for name in routing.losses):
            own = [routing.losses[name] for routing in routings if name in routing.losses]
            total = total + sum(loss.coefficient * loss.value for loss in own)
            parts[name] = torch.stack([loss.value.detach().float() for loss in own]).mean()
        errors = []
        for routing in routings:
            if routing.aux_prediction is not None:
                others = self._numbers(prediction, routing.aux_prediction)
                errors.append(_mean(others, weights, prediction.share))
                total = total + routing.aux_coefficient * errors[-1]
        if errors:
            parts["aux"] = torch.stack([error.detach() for error in errors]).mean()
        return Losses(total, parts, prediction.t, *_by_time(numbers.detach(), prediction))

    def distance(self, errors: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The loss of each value's error."""
        if self.huber is None:
            return errors.square()
        return (errors.square() + self.huber**2).sqrt() - self.huber

    def weights(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"] | None:
        """The weight at each time; None: one."""
        if self.weighting == "uniform":
            return None
        a, b, p, q = linear_parts(self.process, t)
        # Computed from snr b^2 and gamma b^2, which are finite everywhere.
        signal, limit = a.square(), self.gamma * b.square()
        if self.weighting == "min_snr":
            weight = torch.minimum(signal, limit)
        else:
            weight = signal * limit / (signal + limit).clamp_min(1e-20)
        return weight / (p * b - q * a).square().clamp_min(1e-20)

    def _numbers(self, prediction: Prediction, output: Tensor) -> Tensor:
        """The loss of each value, zero where masked."""
        numbers = self.distance((output.float() - prediction.target).float())
        return numbers if prediction.mask is None else numbers * prediction.mask


def linear_parts(process: Process, t: Float[Tensor, "*n"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, b, p, q at each time: x_t = a x0 + b e, and the target is p x0 + q e."""
    times = t.flatten()
    one, zero = torch.ones_like(times), torch.zeros_like(times)
    a, b = process.corrupt(one, zero, times), process.corrupt(zero, one, times)
    p, q = process.target(one, zero, times), process.target(zero, one, times)
    return a.view_as(t), b.view_as(t), p.view_as(t), q.view_as(t)


def _mean(numbers: Tensor, weights: Tensor | None, share: float) -> Float[Tensor, ""]:
    return (numbers if weights is None else weights * numbers).sum() / share


def _by_time(numbers: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """The mean of the values at each time, and the number that count."""
    t, mask = prediction.t, prediction.mask
    if mask is None:
        counted = torch.full_like(t, numbers.numel() / max(1, t.numel()))
    else:
        counted = mask.expand_as(numbers).sum_to_size(t.shape).to(t.dtype)
    return numbers.sum_to_size(t.shape) / counted.clamp_min(1), counted
