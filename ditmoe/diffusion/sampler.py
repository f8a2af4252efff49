"""Guidance and the denoising loop, over diffusers' schedulers."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.conditioning import Condition
from ditmoe.diffusion.few_steps import telling
from ditmoe.diffusion.process import HORIZON, FlowMatching, Process
from ditmoe.diffusion.seeding import torch_generator
from ditmoe.diffusion.timesteps import MOST_STEPS, set_timesteps
from ditmoe.given import Given
from ditmoe.outside import check_number
from ditmoe.outside.options import call

MOST_GUIDANCE = 1000


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
        cls,
        config: dict[str, Any],
        steps: int | None = None,
        guidance: float | None = None,
        interval: Sequence[float] | None = None,
    ) -> "Sampling":
        """The settings of a configuration, changed where a command says so."""
        said = {"steps": steps, "guidance": guidance, "interval": interval}
        changed = {k: v for k, v in said.items() if v is not None}
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
    """What a scheduler's step must be told beside prediction, time and sample, "" for nothing."""
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


def draw_noise(
    indices: Sequence[int], shape: Sequence[int], seed: int, turn: int = 0
) -> Float[Tensor, "B *sample"]:
    """Starting noise; sample i depends on (seed, i) alone, and the turn of one that is drawn in several."""
    each = [torch_generator("sample", seed, i, *([turn] if turn else [])) for i in indices]
    return torch.stack([torch.randn(*shape, generator=generator) for generator in each])


@torch.no_grad()
def denoise(
    model: nn.Module,
    process: Process,
    scheduler: Any,
    noise: Float[Tensor, "B *sample"],
    asked: Condition,
    *,
    steps: int,
    guidance: float | Callable[[], float] = 1.0,
    interval: Sequence[float] = (0.0, 1000.0),
    negative: Condition | None = None,
    generators: list[torch.Generator] | torch.Generator | None = None,
    schedule: Mapping[str, Sequence[float]] = MappingProxyType({}),
    step_options: Mapping[str, Any] = MappingProxyType({}),
    times: Callable[[Tensor], Float[Tensor, "*t"]] | None = None,
    given: Given | None = None,
    given_guidance: float = 1.0,
    on_step: Callable[[], None] = lambda: None,
    watch: Callable[[int, Tensor, Tensor], tuple[Tensor, bool]] | None = None,
) -> Float[Tensor, "B *sample"]:
    """From noise to samples.

    Classifier-free guidance (arXiv 2207.12598), u + guidance (c - u), is applied at times within `interval`
    (arXiv 2404.07724) and costs a second prediction there; at 1 it is off. So does the guidance by what is given,
    which adds (given_guidance - 1) (c - h), h being predicted with it hidden. A model that was distilled for few steps
    (`ditmoe.diffusion.few_steps`) has guidance inside, which then costs nothing.

    Args:
        scheduler: from `make_scheduler`.
        asked: what to draw.
        steps: number of scheduler steps.
        guidance: a number, or what says it anew before each step.
        negative: what guidance leads away from; None is what nothing is asked of.
        generators: one per sample, or one for all, for schedulers that add noise.
        schedule: times or sigmas in place of even steps, see `set_timesteps`.
        step_options: further arguments of the scheduler's `step`, such as eta.
        times: from the scheduler's time, a scalar, those that the model is told (a shape of `ditmoe.nn.layout`), such
            as 0 for the frames that are given; None is that time for each sample. The scheduler steps all alike.
        given: what is there already; what it marks as known comes out as it is.
        on_step: called after each step, and for each that a strength leaves out.
        watch: given the number of each step, its time and the samples after it; returns those to go on with, and
            whether to stop there.

    Raises:
        ValueError: as soon as a number is not finite; on a GPU, which is not waited for in between, at the end. And for
            what a distilled model was not made for.
    """
    strength = guidance() if callable(guidance) else guidance
    tell = telling(model, scheduler, steps, strength, interval, negative, own_times=bool(schedule))
    # On the host, so that no step waits for a GPU to tell the time.
    set_timesteps(scheduler, steps, torch.device("cpu"), **schedule)
    if getattr(process, "tokens", None) is not None and not schedule:
        tokens = math.prod(model.tokens.grid(noise))  # type: ignore[operator, union-attr]
        scheduler.timesteps = process.shifted(scheduler.timesteps, tokens)
        scheduler.sigmas = process.shifted(HORIZON * scheduler.sigmas, tokens) / HORIZON
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {**step_options, **({"generator": generators} if takes_generator else {})}
    x, first = noise * getattr(scheduler, "init_noise_sigma", 1.0), 0
    held = None if given is None else Held(given, process, noise)
    if given is not None:
        asked = asked.beside(given.beside)
        if given.strength < 1:
            x, first = start_from(process, scheduler, given, noise)
    for _ in range(first):
        on_step()
    finite: list[tuple[Tensor, float, float]] = []
    ends = [*scheduler.timesteps[1:].tolist(), 0.0]
    for step, (t, end) in enumerate(zip(scheduler.timesteps[first:], ends[first:], strict=True)):
        inside = interval[0] <= float(t) <= interval[1]
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        each = expanded(t, x)
        told = t.expand(len(x)).float() if getattr(model, "reads_times", False) else each
        strength = guidance() if callable(guidance) else guidance
        unseen, said, weight = None, asked, strength if inside else 1.0
        if held is not None:
            if inside and given_guidance != 1.0 and held.can_hide:
                unseen = held.shown(scaled, t, hide=True)
            scaled, told = held.shown(scaled, t)
        elif times is not None:
            told = times(t).float().to(x.device)
        if told.ndim > 1:
            each = model.tokens.sample_times(told, scaled)  # type: ignore[operator, union-attr]
        if tell is not None:
            said = tell(asked, told, float(t) - end, strength, None if held is None else held.places)
            weight = weight if tell.weights is None else 1.0
        hidden = None if unseen is None else (*unseen, said.hiding)
        output = guided(model, scaled, told, said, weight, negative, hidden, given_guidance)
        output = process.to_scheduler_output(output, scaled, each)
        if held is not None:
            output = held.steered(output, t)
        x = scheduler.step(output, t, x, **extra, return_dict=False)[0]
        finite.append((x.isfinite().all(), float(t), strength))
        if x.device.type == "cpu":
            check_finite(finite)
            finite.clear()
        on_step()
        if watch is not None:
            x, stop = watch(step, t, x)
            if stop:
                break
    check_finite(finite)
    return x if held is None else held.put_back(x)


def expanded(t: Tensor, x: Float[Tensor, "B *sample"]) -> Float[Tensor, " B"]:
    """The scheduler's time, one of each sample and where these are."""
    return t.expand(len(x)).float().to(x.device, non_blocking=True)


def check_finite(steps: Sequence[tuple[Tensor, float, float]]) -> None:
    """Raises ValueError naming the first time and guidance at which not all were finite; a GPU is waited for."""
    good = torch.stack([each for each, _, _ in steps]).tolist() if steps else []
    for (_, time, strength), each in zip(steps, good, strict=True):
        if not each:
            raise ValueError(
                f"samples are no longer finite at time {time:.0f}: lower guidance={strength:g}, take another "
                "scheduler, or train on"
            )


class Held:
    """What is given, on its way through the steps of a scheduler.

    Where it is known, the model sees it clean at time 0, or as it is at the time of the step if it is not to be told;
    the scheduler gets the exact prediction there, so that what it remembers of earlier steps stays on the path too.
    """

    def __init__(self, given: Given, process: Process, noise: Float[Tensor, "B *sample"]) -> None:
        self.given, self.process, self.noise = given, process, noise
        self.known = None if given.known is None else given.known.expand_as(noise)
        self.places = given.places if self.known is not None else None
        self.can_hide = self.places is not None or bool(given.beside)
        if self.places is None:
            return
        self.clean = self._at(torch.zeros(len(noise), device=noise.device))

    def shown(self, scaled: Tensor, t: Tensor, hide: bool = False) -> tuple[Tensor, Tensor]:
        """What the model sees at a scheduler's time, and the times that it is told; with all hidden that is given."""
        time = expanded(t, scaled)
        if self.known is None:
            return scaled, time
        if self.places is None:
            return torch.where(self.known, self._at(time), scaled), time
        value, of = (self.noise, self.process.last) if hide else (self.clean, 0.0)
        told = torch.where(self.places, of, time[:, None])
        return torch.where(self.known, value, scaled), told

    def steered(self, output: Tensor, t: Tensor) -> Tensor:
        """The scheduler's output, where it is known the exact one."""
        if self.known is None:
            return output
        time = expanded(t, output)
        target = self.process.target(self.given.x, self.noise, time)
        exact = self.process.to_scheduler_output(target, self._at(time), time)
        return torch.where(self.known, exact, output)

    def put_back(self, x: Tensor) -> Tensor:
        """The samples, with what is known as it was given."""
        return x if self.known is None else torch.where(self.known, self.given.x, x)

    def _at(self, time: Tensor) -> Tensor:
        return self.process.corrupt(self.given.x, self.noise, time)


def start_from(
    process: Process, scheduler: Any, given: Given, noise: Float[Tensor, "B *sample"]
) -> tuple[Float[Tensor, "B *sample"], int]:
    """What is given, noised to its strength as the scheduler has samples, and the step that begins there (SDEdit)."""
    order = getattr(scheduler, "order", 1)
    times = scheduler.timesteps.tolist()
    later = [i for i in range(0, len(times), order) if times[i] <= given.strength * HORIZON]
    first = later[0] if later else (len(times) - 1) // order * order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    time, one = scheduler.timesteps[first], noise.new_ones(1)
    unit = scheduler.scale_model_input(one, time) if hasattr(scheduler, "scale_model_input") else one
    return process.corrupt(given.x, noise, expanded(time, noise)) / unit, first


View = tuple[Float[Tensor, "B *sample"], Float[Tensor, "B *f"], Condition]


def guided(
    model: Any,
    x: Float[Tensor, "B *sample"],
    t: Float[Tensor, "B *f"],
    asked: Condition,
    guidance: float,
    negative: Condition | None = None,
    hidden: View | None = None,
    given_guidance: float = 1.0,
) -> Float[Tensor, "B *sample"]:
    """The model's prediction with both kinds of guidance; a variance that it learnt beside it is left out.

    Args:
        hidden: the same samples, times and condition with all hidden that is given; None: without guidance by it.
    """
    views: list[View] = [(x, t, asked)]
    if guidance != 1.0:
        views.append((x, t, asked.nothing if negative is None else replace(negative, given=asked.given)))
    if hidden is not None:
        views.append(hidden)
    if len(views) == 1:
        return model(x, t, asked)[0][:, : x.shape[1]]
    xs, ts, conditions = zip(*views, strict=True)
    output = model(torch.cat(xs), torch.cat(ts), Condition.cat(conditions))[0][:, : x.shape[1]]
    shown, *others = output.chunk(len(views))
    guided = shown if guidance == 1.0 else others[0] + guidance * (shown - others[0])
    return guided if hidden is None else guided + (given_guidance - 1) * (shown - others[-1])
