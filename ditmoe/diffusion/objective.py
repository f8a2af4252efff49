"""What is optimised: how far a prediction is from its target, weighted over time, and what the routers add.

With x_t = a x0 + b e and the target p x0 + q e, an error d of the network's output at a given x_t is an error of x0 of

    d b / (p b - q a),        so that   |x0 error|^2 = |output error|^2 b^2 / (p b - q a)^2,

whatever the network predicts: a, b, p, q are read off the process. A weighting w(snr) of the error of x0,
snr = a^2 / b^2, is then the factor w b^2 / (p b - q a)^2 on the error of the output.
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
    """What a layer with experts adds: a `ditmoe.moe.Routing`, of which this room knows no more."""

    @property
    def losses(self) -> Mapping[str, Any]:
        """By name, each a value and its coefficient."""

    @property
    def aux_prediction(self) -> Tensor | None:
        """Another prediction of the same target."""

    @property
    def aux_coefficient(self) -> float:
        """Of its error."""


@dataclass(frozen=True)
class Prediction:
    """What a model made of a batch, beside what it should have made: of this process its part.

    Attributes:
        output, target: (R, *sample); (1, T, P) where samples are packed.
        t: times, shaped to multiply samples: one for each, or for each place along one of their axes.
        share: numbers that count, of all processes together, over the number of processes.
        mask: shaped to multiply samples, 1 where a number counts and 0 where it does not; None counts all.
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
    """What an objective says of a prediction.

    Attributes:
        total: what is optimised; its mean over the processes is that of the whole batch.
        parts: by name, for the log, detached: "loss" is the prediction's, as it is weighted; those of the routers, by
            their own names, are means over the layers without coefficients.
        t: the times.
        each: like `t`: the mean over the numbers that count of each time, before the weights over time.
        counted: like `t`: how many these are.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]
    t: Float[Tensor, "..."]
    each: Float[Tensor, "..."]
    counted: Float[Tensor, "..."]


@dataclass(frozen=True)
class Objective:
    """Mean over the numbers that count of w(t) |output - target|^2, plus what the routers add.

    Routers' own losses are added times their coefficients over the layers, as DiT-MoE does, and so are errors of
    auxiliary predictions, measured as the output's. Another objective is a class of its own, or one that overrides
    `distance` or `weights`, and a YAML in `configs/objective/`.

    Args:
        process: whose times and targets these are.
        weighting: w over time, as a weight of the error of x0 that is carried over to what is predicted:
            "uniform" is none, w = 1 on the error of the output;
            "min_snr" is min(snr, gamma) (arXiv 2303.09556);
            "sigmoid" is gamma sigmoid(log snr - log gamma) = 1 / (1 / snr + 1 / gamma), the same without the bend
            (arXiv 2303.00848).
        gamma: signal to noise above which a time gains no more weight.
        huber: c of sqrt(d^2 + c^2) - c in place of d^2, which grows linearly beyond c (pseudo-Huber, arXiv 2310.14189,
            here of each number d); None is off.

    Raises:
        ValueError: if an option is out of its range.
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
        """All that is said of a prediction."""
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
        """What each number's error costs."""
        if self.huber is None:
            return errors.square()
        return (errors.square() + self.huber**2).sqrt() - self.huber

    def weights(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"] | None:
        """Factor at each time; None is one."""
        if self.weighting == "uniform":
            return None
        a, b, p, q = linear_parts(self.process, t)
        # snr b^2 and gamma b^2, which are finite everywhere.
        signal, limit = a.square(), self.gamma * b.square()
        if self.weighting == "min_snr":
            weight = torch.minimum(signal, limit)
        else:
            weight = signal * limit / (signal + limit).clamp_min(1e-20)
        return weight / (p * b - q * a).square().clamp_min(1e-20)

    def _numbers(self, prediction: Prediction, output: Tensor) -> Tensor:
        """What each number costs, zero where it does not count."""
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
    """The mean of the numbers of each time, and how many count."""
    t, mask = prediction.t, prediction.mask
    if mask is None:
        counted = torch.full_like(t, numbers.numel() / max(1, t.numel()))
    else:
        counted = mask.expand_as(numbers).sum_to_size(t.shape).to(t.dtype)
    return numbers.sum_to_size(t.shape) / counted.clamp_min(1), counted
