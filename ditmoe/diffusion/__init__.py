"""Noise and back: processes that corrupt data, what is optimised, the loop back to data, and its schedulers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ditmoe.diffusion.few_steps import check_most_steps, check_steps, numbers_of_steps
from ditmoe.diffusion.objective import Losses, Objective, Prediction
from ditmoe.diffusion.process import DDPM, HORIZON, FlowMatching, Process
from ditmoe.diffusion.sampler import check_weaker, denoise, draw_noise
from ditmoe.diffusion.sampling import MOST_GUIDANCE, Sampling
from ditmoe.diffusion.scheduler_fit import check_scheduler, make_scheduler, try_scheduler
from ditmoe.diffusion.seeding import torch_generator

if TYPE_CHECKING:
    from ditmoe.diffusion.schedulers import (
        EvenDDIMScheduler,
        FlowAncestralScheduler,
        FlowMapScheduler,
        SchedulerMixin,
    )

_LAZY = {  # they need diffusers, which importing this room should not bring
    "EvenDDIMScheduler": "schedulers",
    "FlowAncestralScheduler": "schedulers",
    "FlowMapScheduler": "schedulers",
    "SchedulerMixin": "schedulers",
}

__all__ = [
    "DDPM",
    "HORIZON",
    "MOST_GUIDANCE",
    "EvenDDIMScheduler",
    "FlowAncestralScheduler",
    "FlowMapScheduler",
    "FlowMatching",
    "Losses",
    "Objective",
    "Prediction",
    "Process",
    "Sampling",
    "SchedulerMixin",
    "check_most_steps",
    "check_scheduler",
    "check_steps",
    "check_weaker",
    "denoise",
    "draw_noise",
    "make_scheduler",
    "numbers_of_steps",
    "torch_generator",
    "try_scheduler",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
