"""Guidance and the denoising loop, over diffusers' schedulers."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.conditioning import Condition
from ditmoe.diffusion.process import HORIZON, FlowMatching, Process
from ditmoe.diffusion.seeding import torch_generator
from ditmoe.outside import check_number
from ditmoe.outside.options import call

MOST_STEPS, MOST_GUIDANCE = 10_000, 1000


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled: scheduler steps, guidance and the times at which it is on."""

    steps: int = 50
    guidance: float = 1.0
    interval: Sequence[float] = (0.0, 1000.0)

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, MOST_STEPS, whole=True)
        check_number("guidance", self.guidance, -MOST_GUIDANCE, MOST_GUIDANCE)
        times = self.interval
        if not isinstance(times, list | tuple) or len(times) != 2:
            raise ValueError(f"interval must be two times between 0 and {HORIZON}, got {times!r}")
        check_number("the start of interval", times[0], 0, HORIZON)
        check_number("the end of interval", times[1], times[0], HORIZON)

    @classmethod
    def of(
        cls, config: dict[str, Any], steps: int | None = None, guidance: float | None = None
    ) -> "Sampling":
        """The settings of a configuration, changed where a command says so."""
        changed = {k: v for k, v in {"steps": steps, "guidance": guidance}.items() if v is not None}
        if not isinstance(config.get("sampling"), Mapping):
            raise ValueError(f"sampling must be a section, got {config.get('sampling')!r}")
        return call("sampling", cls, **{**config["sampling"], **changed})


def make_scheduler(scheduler: Callable[..., Any], process: Process) -> Any:
    """A diffusers scheduler (its class, or a partial with options) that fits the process.

    Raises:
        ValueError: where scheduler and process cannot meet: flow matching needs a scheduler of flows, DDPM one
            of discrete diffusion.
    """
    known = _check_kind(scheduler.func if hasattr(scheduler, "func") else scheduler, process)
    given = scheduler.keywords if hasattr(scheduler, "keywords") else {}
    options = {k: v for k, v in process.scheduler_options().items() if k in known and k not in given}
    return scheduler(**options)


def check_scheduler(scheduler: Any, process: Process) -> None:
    """Refuse a scheduler that was made elsewhere and cannot follow the process.

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
    """Go two steps with a scheduler whose options came in a file; whatever is wrong with them shows.

    Args:
        scheduler: from `make_scheduler`, or of a pipeline; it is left as it is.
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
    """The options of a scheduler's class, which must fit the process."""
    from ditmoe.diffusion.schedulers import follows_flow, is_flow

    if isinstance(process, FlowMatching) and not follows_flow(target):
        raise ValueError(f"scheduler {target.__name__} cannot follow process flow_matching; try flow_euler")
    if not isinstance(process, FlowMatching) and is_flow(target):
        raise ValueError(
            f"scheduler {target.__name__} needs process flow_matching; for ddpm try ddim or dpmpp"
        )
    return inspect.signature(target.__init__).parameters


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, np.ndarray):
        return (
            value is not None and len(value) == len(wanted) and np.allclose(value, wanted, rtol=1e-5, atol=0)
        )
    return value == wanted


def draw_noise(indices: Sequence[int], shape: Sequence[int], seed: int) -> Float[Tensor, "B *sample"]:
    """Starting noise; sample i depends on (seed, i) alone."""
    return torch.stack([torch.randn(*shape, generator=torch_generator("sample", seed, i)) for i in indices])


@torch.no_grad()
def denoise(
    model: nn.Module,
    process: Process,
    scheduler: Any,
    noise: Float[Tensor, "B *sample"],
    asked: Condition,
    *,
    steps: int,
    guidance: float = 1.0,
    interval: Sequence[float] = (0.0, 1000.0),
    negative: Condition | None = None,
    generators: list[torch.Generator] | torch.Generator | None = None,
    times: Callable[[Tensor], Float[Tensor, "*t"]] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Float[Tensor, "B *sample"]:
    """From noise to samples.

    Classifier-free guidance (arXiv 2207.12598), u + guidance (c - u), is applied at times within `interval`
    (arXiv 2404.07724) and costs a second prediction there; at 1 it is off.

    Args:
        scheduler: from `make_scheduler`.
        asked: what to draw.
        steps: number of scheduler steps.
        negative: what guidance leads away from; None is what nothing is asked of.
        generators: one per sample, or one for all, for schedulers that add noise.
        times: from the scheduler's time, a scalar, those that the model is told (a shape of `ditmoe.nn.layout`), such
            as 0 for the frames that are given; None is that time for each sample. The scheduler steps all alike.
        on_step: called after each step.

    Raises:
        ValueError: as soon as a number is not finite.
    """
    set_timesteps(scheduler, steps, noise.device)
    if getattr(process, "tokens", None) is not None:
        tokens = math.prod(model.tokens.grid(noise))  # type: ignore[operator, union-attr]
        scheduler.timesteps = process.shifted(scheduler.timesteps, tokens)
        scheduler.sigmas = process.shifted(HORIZON * scheduler.sigmas, tokens) / HORIZON
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if takes_generator else {}
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        inside = interval[0] <= float(t) <= interval[1]
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        told = each = t.expand(len(x)).float()
        if times is not None:
            told = times(t).float()
            each = model.tokens.sample_times(told, scaled)  # type: ignore[operator, union-attr]
        output = guided(model, scaled, told, asked, guidance if inside else 1.0, negative)
        output = process.to_scheduler_output(output, scaled, each)
        x = scheduler.step(output, t, x, **extra, return_dict=False)[0]
        if not x.isfinite().all():
            raise ValueError(
                f"samples are no longer finite at time {float(t):.0f}: lower guidance={guidance:g}, take another "
                "scheduler, or train on"
            )
        on_step()
    return x


def guided(
    model: Any,
    x: Float[Tensor, "B *sample"],
    t: Float[Tensor, "B *f"],
    asked: Condition,
    guidance: float,
    negative: Condition | None = None,
) -> Float[Tensor, "B *sample"]:
    """The model's prediction with classifier-free guidance; a variance that it learnt beside it is left out."""
    channels = x.shape[1]
    if guidance == 1.0:
        return model(x, t, asked)[0][:, :channels]
    everything = Condition.cat([asked, asked.nothing if negative is None else negative])
    both = model(torch.cat([x, x]), torch.cat([t, t]), everything)[0][:, :channels]
    conditional, unconditional = both.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def set_timesteps(scheduler: Any, steps: int, device: torch.device) -> None:
    """Even steps from noise to data; what diffusers' own choice of times gets wrong is put right.

    Raises:
        ValueError: for more steps than a discrete process has.
    """
    from ditmoe.diffusion.schedulers import ends_short

    if ends_short(scheduler):
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], device=device)
        return
    discrete = scheduler.config.get("trained_betas") is not None
    if discrete and steps > HORIZON:
        raise ValueError(f"steps must be at most {HORIZON} for process ddpm, got {steps}")
    scheduler.set_timesteps(steps, device=device)
    if scheduler.config.get("use_flow_sigmas", False):
        # The start is pure noise, but for what keeps the logarithm of the data's share finite. And times must not
        # be cut to whole numbers: they would be off by up to 1, and two the same at 1000 steps.
        scheduler.sigmas[0] = 1 - 1e-6
        scheduler.timesteps = HORIZON * scheduler.sigmas[:-1].to(device)
    elif discrete and len(scheduler.timesteps) > steps:
        # at 61, 103, 121, ... steps rounding adds a time -1 to "trailing" ones, which is read as the last, all noise
        scheduler.timesteps = scheduler.timesteps[:-1]
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = torch.cat([scheduler.sigmas[:-2], scheduler.sigmas[-1:]])
