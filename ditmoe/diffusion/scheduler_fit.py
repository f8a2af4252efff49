"""Compatibility of diffusers schedulers with a process, and construction of a fitting one."""

import copy
import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ditmoe.conditioning import Condition
from ditmoe.diffusion.process import FlowMatching, Process
from ditmoe.diffusion.sampler import denoise


def make_scheduler(scheduler: Any, process: Process) -> Any:
    """Construct a diffusers scheduler (given as class, or partial with options) that fits the process.

    Raises:
        ValueError: if scheduler and process are incompatible: flow matching needs a flow scheduler, DDPM one for
            discrete diffusion.
    """
    if not callable(scheduler):
        raise ValueError(f"scheduler {type(scheduler).__name__} is made later: it must say _partial_: true")
    known = _check_kind(scheduler.func if hasattr(scheduler, "func") else scheduler, process)
    given = scheduler.keywords if hasattr(scheduler, "keywords") else {}
    options = {k: v for k, v in process.scheduler_options().items() if k in known and k not in given}
    return scheduler(**options)


def check_scheduler(scheduler: Any, process: Process) -> None:
    """Refuse an existing scheduler that is incompatible with the process.

    Raises:
        ValueError: naming what it must have.
    """
    known, wanted = _check_kind(type(scheduler), process), process.scheduler_options()
    for name in ("num_train_timesteps", "prediction_type", "use_flow_sigmas", "trained_betas"):
        if name in wanted and name in known and not _same(scheduler.config[name], wanted[name]):
            kind = type(scheduler).__name__
            words = [f"{k}={v!r}" for k, v in wanted.items() if k in known and isinstance(v, str | bool)]
            made = f"{kind}.from_config(pipe.scheduler.config, {', '.join(words)})"
            raise ValueError(f"scheduler {kind} must have the process's {name}: {made}")


def try_scheduler(scheduler: Any, process: Process) -> None:
    """Run two steps of a scheduler whose options come from a file, to expose invalid ones.

    Args:
        scheduler: from `make_scheduler`, or of a pipeline; unchanged.
    """

    class Nothing(nn.Module):
        tokens = SimpleNamespace(grid=lambda x: (1,))

        def forward(self, x: Tensor, t: Tensor, y: Condition) -> tuple[Tensor]:
            return (torch.zeros_like(x),)

    noise, generator = torch.zeros(1, 1, 2), torch.Generator()
    denoise(
        Nothing(),
        process,
        copy.deepcopy(scheduler),
        noise,
        Condition({}, torch.ones(1, dtype=torch.bool)),
        steps=2,
        generators=[generator],
    )


def _check_kind(target: Any, process: Process) -> Mapping[str, Any]:
    """Check that a scheduler's class fits the process; returns its constructor's options."""
    from ditmoe.diffusion.schedulers import follows_flow, is_flow

    known = inspect.signature(target.__init__).parameters
    if more := _missing(getattr(target, "step", None)):
        raise ValueError(f"scheduler {target.__name__} steps by more than a prediction: it needs {more}")
    if isinstance(process, FlowMatching) and not follows_flow(target):
        raise ValueError(
            f"scheduler {target.__name__} cannot follow process flow_matching; try flow_euler, in Python "
            "FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)"
        )
    if not isinstance(process, FlowMatching) and (is_flow(target) or "trained_betas" not in known):
        why = "needs process flow_matching" if is_flow(target) else "cannot follow process ddpm"
        raise ValueError(
            f"scheduler {target.__name__} {why}; for ddpm try ddim or dpmpp, in Python "
            "DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)"
        )
    return known


def _missing(step: Any) -> str:
    """Required arguments of a scheduler's step beyond prediction, time and sample, "" if none."""
    if step is None:
        return "another loop than this"
    each = list(inspect.signature(step).parameters.values())[4:]
    wanted = [p.name for p in each if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return " and ".join(wanted)


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, np.ndarray):
        return (
            value is not None and len(value) == len(wanted) and np.allclose(value, wanted, rtol=1e-5, atol=0)
        )
    return value == wanted
