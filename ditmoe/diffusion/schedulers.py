"""Schedulers that diffusers lacks: Euler steps along a flow that renew part of the noise, flow-map steps, and DDIM for
any number of steps. Also the kinds of diffusers' own, which they do not declare.
"""

import inspect
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, DPMSolverMultistepScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchEulerDiscreteSchedulerOutput,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ditmoe.outside import check_number

__all__ = [
    "EvenDDIMScheduler",
    "FlowAncestralScheduler",
    "FlowMapScheduler",
    "SchedulerMixin",
]


def follows_flow(kind: Any) -> bool:
    """Whether a scheduler's class supports flows, always or by an option."""
    return is_flow(kind) or "use_flow_sigmas" in inspect.signature(kind.__init__).parameters


def is_flow(kind: Any) -> bool:
    """Whether a scheduler's class supports only flows: it shifts their times, and has no diffusion betas."""
    known = inspect.signature(kind.__init__).parameters
    return "shift" in known and not {"trained_betas", "use_flow_sigmas"} & known.keys()


def follows_map(scheduler: Any) -> bool:
    """Whether a scheduler takes the mean velocity over each of its steps: ours, and that of diffusers (0.41)."""
    return (
        isinstance(scheduler, FlowMapScheduler) or type(scheduler).__name__ == "FlowMapEulerDiscreteScheduler"
    )


def ends_short(scheduler: Any) -> bool:
    """Whether a scheduler's default times end with a step of almost zero length, so that times must be passed."""
    return isinstance(scheduler, FlowMatchEulerDiscreteScheduler)


class OwnOptions(ConfigMixin):
    """Saves only the options of its own constructor, not those of its base class."""

    def to_json_string(self) -> str:
        own = inspect.signature(type(self).__init__).parameters
        kept = {name: value for name, value in self.config.items() if name in own}
        kept = {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in kept.items()
        }
        return json.dumps({"_class_name": type(self).__name__, **kept}, indent=2, sort_keys=True) + "\n"


class FlowAncestralScheduler(OwnOptions, FlowMatchEulerDiscreteScheduler):
    """Flow-match Euler with ancestral noise, as DDIM's eta adds it to DDPM (arXiv 2010.02502, eq. 16).

    On the path x = (1 - s) x0 + s e a velocity v gives x0 = x - s v and e = x + (1 - s) v. A step from s to r is
        x_r = (1 - r) x0 + r (sqrt(1 - n^2) e + n z),   n^2 = eta^2 (1 - (r (1 - s) / (s (1 - r)))^2),
    with fresh noise z. eta = 0 is Euler's step, eta = 1 the posterior of x_r given x_s and x0. Fresh noise lets stray
    points return, but softens surfaces if added until the end: it is added only where r lies within `interval`.
    """

    __module__ = "ditmoe.diffusion"  # the name in saved configurations

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        eta: float = 1.0,
        interval: Sequence[float] = (0.15, 0.6),
    ) -> None:
        check_number("shift", shift, 1e-6, 1e6)  # beyond, all times are equal in float32
        check_number("eta", eta, 0, 1)
        if not isinstance(interval, list | tuple) or len(interval) != 2:
            raise ValueError(f"interval must be two shares of noise, got {interval!r}")
        super().__init__(num_train_timesteps=num_train_timesteps, shift=shift)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        eta: float | None = None,
    ) -> Any:
        """Make one step; the usual arguments of diffusers schedulers, and an eta in place of the configuration's."""
        if self.step_index is None:
            self._init_step_index(timestep)
        s, r = (float(self.sigmas[self.step_index + i]) for i in (0, 1))
        low, high = self.config.interval
        if not low <= r <= high:
            return super().step(model_output, timestep, sample, generator=generator, return_dict=return_dict)
        clean, noise = sample - s * model_output, sample + (1 - s) * model_output
        share = self.config.eta if eta is None else eta
        fresh = share * (1 - (r * (1 - s) / (s * (1 - r))) ** 2) ** 0.5
        z = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        sample = (1 - r) * clean + r * ((1 - fresh**2) ** 0.5 * noise + fresh * z)
        self._step_index += 1
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=sample) if return_dict else (sample,)


class FlowMapScheduler(OwnOptions, FlowMatchEulerDiscreteScheduler):
    """Steps of a model that predicts mean velocities (`model.flow_map`), each exact if the model is.

    With u the mean velocity from t to r, x_r = x_t - (t - r) u: Euler's step with u in place of the velocity.
    Times are evenly spaced, as in training. Later versions of diffusers have it as `FlowMapEulerDiscreteScheduler`.
    """

    __module__ = "ditmoe.diffusion"

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0) -> None:
        if shift != 1:
            raise ValueError(f"shift must be 1, since the model learnt even steps, got {shift}")
        super().__init__(num_train_timesteps=num_train_timesteps, shift=shift)


class EvenDDIMScheduler(OwnOptions, DPMSolverMultistepScheduler):
    """Deterministic DDIM (arXiv 2010.02502), in which each step ends where the next begins.

    A step of diffusers' own always removes the noise of 1000 // steps timesteps, wherever the next time is: unless the
    number of steps divides 1000, the network gets a time that does not match the sample's noise (with 600 steps a
    Gaussian is off by 0.6 standard deviations). First-order DPM-Solver++ has the same formula (arXiv 2211.01095).
    """

    __module__ = "ditmoe.diffusion"

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        trained_betas: np.ndarray | Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "trailing",
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            trained_betas=trained_betas,
            prediction_type=prediction_type,
            timestep_spacing=timestep_spacing,
        )

    def step(self, *args: Any, **options: Any) -> Any:
        """Make one step; the usual arguments of diffusers schedulers."""
        stepped = super().step(*args, **options)
        # Keeps it at first order; a `solver_order` of 1 would be inherited by schedulers made from this configuration.
        self.lower_order_nums = 0
        return stepped
