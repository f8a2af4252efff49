"""Diffusion: noising processes, the training objective, the sampling loop, and its schedulers."""

from typing import TYPE_CHECKING

from ditmoe.diffusion.few_steps import check_most_steps, check_steps
from ditmoe.diffusion.objective import Losses, Objective, Prediction
from ditmoe.diffusion.process import DDPM, HORIZON, FlowMatching, Process
from ditmoe.diffusion.sampler import check_weaker, denoise, draw_noise
from ditmoe.diffusion.sampling import MOST_GUIDANCE, Sampling
from ditmoe.diffusion.scheduler_fit import check_scheduler, make_scheduler, try_scheduler
from ditmoe.diffusion.seeding import torch_generator
from ditmoe.lazy import lazily

if TYPE_CHECKING:
    from ditmoe.diffusion.schedulers import (
        EvenDDIMScheduler,
        FlowAncestralScheduler,
        FlowMapScheduler,
        SchedulerMixin,
    )

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
    "torch_generator",
    "try_scheduler",
]
__getattr__ = lazily(  # diffusers
    __name__,
    {
        "ditmoe.diffusion.schedulers": [
            "EvenDDIMScheduler",
            "FlowAncestralScheduler",
            "FlowMapScheduler",
            "SchedulerMixin",
        ]
    },
)
