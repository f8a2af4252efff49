"""Noising processes and prediction targets: flow matching and DDPM as one family.

Both mix a sample with Gaussian noise, x_t = a(t) x0 + b(t) e. They differ in a and b, and in what the network predicts.
Time runs from data (t = 0) to noise (t = 1000), also in the timestep embedding.

Flow matching (arXiv 2210.02747, 2209.03003): a = 1 - s, b = s with s = t / 1000, a straight line. Along it
    dx/ds = e - x0,
and a network that predicts the velocity v = E[e - x0 | x_t] transports noise to data when the equation is integrated
backwards. Training times are logit-normal (arXiv 2403.03206), s = sigmoid(m + d N(0, 1)).

For data and noise of unit variance, the best linear prediction of the velocity is
    skip(s) x_t,   skip = (s - a) / (a^2 + s^2),   and its residual has variance 1 / (a^2 + s^2).
With `prediction: residual` the network predicts only this residual, scaled to unit variance:
    v = skip(s) x_t + F / sqrt(a^2 + s^2).
This is the preconditioning of EDM (arXiv 2206.00364, section 5) on the straight path.

DDPM (arXiv 2006.11239): a = sqrt(A_t), b = sqrt(1 - A_t), where A_t is the product of 1 - beta up to t. The network
predicts e, or
    v = a e - b x0   (arXiv 2202.00512);
then x0 = (x_t - b e) / a = a x_t - b v.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.outside import check_number

HORIZON = 1000
"""The time of pure noise, for both processes and the schedulers of diffusers."""


def expand(t: Float[Tensor, "*t"], like: Float[Tensor, "B *sample"]) -> Tensor:
    """Reshape one number per sample to broadcast to samples; leave broadcastable shapes (`Tokens.sample_times`) as is.

    Raises:
        ValueError: for any other shape.
    """
    if t.ndim == like.ndim:
        fits = all(n in (1, size) for n, size in zip(t.shape, like.shape, strict=True))
    else:
        fits = t.ndim == 1 and len(t) in (1, len(like))
    if not fits:
        raise ValueError(
            f"times must be ({len(like)},) or multiply samples of shape {tuple(like.shape)}, got {tuple(t.shape)}"
        )
    return t if t.ndim == like.ndim else t.view(-1, *[1] * (like.ndim - 1))


class Process(ABC):
    """Defines how samples are noised and what a network predicts. It has no weights and never calls the model.

    Times are (B,), one per sample, or broadcastable to samples (`expand`).

    Attributes:
        last: the time of pure noise.
    """

    last: float = HORIZON

    @abstractmethod
    def draw_times(self, num: int, generator: torch.Generator) -> Float[Tensor, " B"]:
        """Random training times, from 0 to 1000."""

    def shifted(self, t: Float[Tensor, "*t"], tokens: Tensor | int) -> Float[Tensor, "*t"]:
        """Shift times for the number of tokens of a sample, in training and in sampling; by default unchanged."""
        return t

    @abstractmethod
    def corrupt(
        self, x0: Float[Tensor, "B *sample"], noise: Float[Tensor, "B *sample"], t: Float[Tensor, "*t"]
    ) -> Float[Tensor, "B *sample"]:
        """The noisy sample x_t."""

    @abstractmethod
    def target(
        self, x0: Float[Tensor, "B *sample"], noise: Float[Tensor, "B *sample"], t: Float[Tensor, "*t"]
    ) -> Float[Tensor, "B *sample"]:
        """The target of the network's output."""

    @abstractmethod
    def to_scheduler_output(
        self, output: Float[Tensor, "B *sample"], x_t: Float[Tensor, "B *sample"], t: Float[Tensor, "*t"]
    ) -> Float[Tensor, "B *sample"]:
        """Convert the network's output to the prediction type of diffusers' schedulers."""

    @abstractmethod
    def scheduler_options(self) -> dict[str, Any]:
        """Constructor arguments of diffusers schedulers that describe this process."""


class FlowMatching(Process):
    """A straight path from data to noise, with logit-normal training times. Equations: at the top of this file.

    Args:
        prediction: "velocity", or "residual": the velocity without its linear part, scaled to unit variance.
        mean, std: of the logit of s; (0, 1) favours the middle of the path, a negative mean the clean end.
        tokens: n. Times of samples with another number m of tokens are shifted, s' = a s / (1 + (a - 1) s) with
            a = sqrt(m / n), since the same noise hides less of a larger sample (arXiv 2403.03206, eq. 23). None: no
            shift.
    """

    def __init__(
        self, prediction: str = "velocity", mean: float = 0.0, std: float = 1.0, tokens: int | None = None
    ) -> None:
        if tokens is not None and tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        if prediction not in ("velocity", "residual"):
            raise ValueError(f"prediction must be velocity or residual for flow matching, got {prediction!r}")
        check_number("mean", mean)
        check_number("std", std, above=0)
        self.prediction, self.mean, self.std, self.tokens = prediction, mean, std, tokens

    def draw_times(self, num: int, generator: torch.Generator) -> Float[Tensor, " B"]:
        return HORIZON * torch.sigmoid(self.mean + self.std * torch.randn(num, generator=generator))

    def shifted(self, t: Float[Tensor, "*t"], tokens: Tensor | int) -> Float[Tensor, "*t"]:
        if self.tokens is None:
            return t
        a = torch.as_tensor(tokens, device=t.device).div(self.tokens).sqrt().to(t.dtype)
        return a * t / (1 + (a - 1) * t / HORIZON)

    def corrupt(
        self, x0: Float[Tensor, "B *sample"], noise: Float[Tensor, "B *sample"], t: Float[Tensor, "*t"]
    ) -> Float[Tensor, "B *sample"]:
        return torch.lerp(x0, noise, expand(t / HORIZON, x0))

    def target(
        self, x0: Float[Tensor, "B *sample"], noise: Float[Tensor, "B *sample"], t: Float[Tensor, "*t"]
    ) -> Float[Tensor, "B *sample"]:
        velocity = noise - x0
        if self.prediction == "velocity":  # saves computing x_t
            return velocity
        return self.from_velocity(velocity, self.corrupt(x0, noise, t), t)

    def to_scheduler_output(
        self, output: Float[Tensor, "B *sample"], x_t: Float[Tensor, "B *sample"], t: Float[Tensor, "*t"]
    ) -> Float[Tensor, "B *sample"]:
        if self.prediction == "velocity":
            return output
        skip, scale = self._linear_part(t, x_t)
        return skip * x_t + scale * output

    def from_velocity(
        self, velocity: Float[Tensor, "B *sample"], x_t: Float[Tensor, "B *sample"], t: Float[Tensor, "*t"]
    ) -> Float[Tensor, "B *sample"]:
        """The network's output for a given velocity: the inverse of `to_scheduler_output`."""
        if self.prediction == "velocity":
            return velocity
        skip, scale = self._linear_part(t, x_t)
        return (velocity - skip * x_t) / scale

    def scheduler_options(self) -> dict[str, Any]:
        return {
            "num_train_timesteps": HORIZON,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
        }

    @staticmethod
    def _linear_part(t: Float[Tensor, "*t"], like: Tensor) -> tuple[Tensor, Tensor]:
        s = expand(t / HORIZON, like)
        variance = (1 - s) ** 2 + s**2
        return (2 * s - 1) / variance, variance.rsqrt()


class DDPM(Process):
    """Denoising diffusion with 1000 discrete steps. Equations: at the top of this file.

    Args:
        prediction: "epsilon" or "v".
        schedule: of beta: "linear" from `beta_start` to `beta_end`; "cosine" (arXiv 2102.09672, eq. 17); or "warm0.1",
            linear over the first tenth of the steps and then constant, as in PVD for aeroplanes.
    """

    last = HORIZON - 1

    def __init__(
        self,
        prediction: str = "epsilon",
        schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        if prediction not in ("epsilon", "v"):
            raise ValueError(f"prediction must be epsilon or v for DDPM, got {prediction!r}")
        self.prediction = prediction
        self.betas = make_betas(schedule, beta_start, beta_end)
        self.alphas_cumprod = (1 - self.betas).cumprod(0)
        self._on_device: dict[torch.device, Tensor] = {}  # copies of `alphas_cumprod`

    def draw_times(self, num: int, generator: torch.Generator) -> Float[Tensor, " B"]:
        return torch.randint(HORIZON, (num,), generator=generator).float()

    def corrupt(
        self, x0: Float[Tensor, "B *sample"], noise: Float[Tensor, "B *sample"], t: Float[Tensor, "*t"]
    ) -> Float[Tensor, "B *sample"]:
        a, b = self._mix(t, x0)
        return a * x0 + b * noise

    def target(
        self, x0: Float[Tensor, "B *sample"], noise: Float[Tensor, "B *sample"], t: Float[Tensor, "*t"]
    ) -> Float[Tensor, "B *sample"]:
        if self.prediction == "epsilon":
            return noise
        a, b = self._mix(t, x0)
        return a * noise - b * x0

    def to_scheduler_output(
        self, output: Float[Tensor, "B *sample"], x_t: Float[Tensor, "B *sample"], t: Float[Tensor, "*t"]
    ) -> Float[Tensor, "B *sample"]:
        return output

    def scheduler_options(self) -> dict[str, Any]:
        return {
            "num_train_timesteps": HORIZON,
            "prediction_type": "epsilon" if self.prediction == "epsilon" else "v_prediction",
            "trained_betas": self.betas.float().numpy(),
            "clip_sample": False,
            "timestep_spacing": "trailing",
        }

    def _mix(self, t: Float[Tensor, "*t"], like: Tensor) -> tuple[Tensor, Tensor]:
        if t.device not in self._on_device:
            self._on_device[t.device] = self.alphas_cumprod.to(t.device, non_blocking=True)
        cumprod = expand(self._on_device[t.device][t.long()].float(), like)
        return cumprod.sqrt(), (1 - cumprod).sqrt()


def make_betas(schedule: str, beta_start: float, beta_end: float) -> Float[Tensor, " 1000"]:
    """The variance beta of the noise added by each of the 1000 steps, in float64.

    Raises:
        ValueError: for an unknown schedule or betas outside 0 < beta_start <= beta_end < 1.
    """
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"betas must satisfy 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}"
        )
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, HORIZON, dtype=torch.float64)
    if schedule == "warm0.1":
        warm = torch.linspace(beta_start, beta_end, HORIZON // 10, dtype=torch.float64)
        return torch.cat([warm, warm.new_full((HORIZON - HORIZON // 10,), beta_end)])
    if schedule == "cosine":
        s = torch.linspace(0, 1, HORIZON + 1, dtype=torch.float64)
        cumprod = torch.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - cumprod[1:] / cumprod[:-1]).clamp(max=0.999)
    raise ValueError(f"schedule must be linear, cosine or warm0.1, got {schedule!r}")
