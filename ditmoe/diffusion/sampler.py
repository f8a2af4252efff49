"""The denoising loop, over diffusers' schedulers."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.conditioning import Condition
from ditmoe.diffusion.few_steps import Telling, telling
from ditmoe.diffusion.guidance import Network, View, guided
from ditmoe.diffusion.held import Held, expanded, start_from
from ditmoe.diffusion.process import HORIZON, Process
from ditmoe.diffusion.seeding import torch_generator
from ditmoe.diffusion.timesteps import set_timesteps
from ditmoe.given import Given


def draw_noise(
    indices: Sequence[int], shape: Sequence[int], seed: int, turn: int = 0
) -> Float[Tensor, "B *sample"]:
    """Starting noise; that of sample i depends only on (seed, i), and on the turn if it is drawn in several."""
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
    weaker: nn.Module | None = None,
    generators: list[torch.Generator] | torch.Generator | None = None,
    schedule: Mapping[str, Sequence[float]] = MappingProxyType({}),
    step_options: Mapping[str, Any] = MappingProxyType({}),
    times: Callable[[Tensor], Float[Tensor, "*t"]] | None = None,
    given: Given | None = None,
    given_guidance: float = 1.0,
    first_block_cache: float = 0.0,
    on_step: Callable[[], None] = lambda: None,
    watch: Callable[[int, Tensor, Tensor], tuple[Tensor, bool]] | None = None,
) -> Float[Tensor, "B *sample"]:
    """Denoise: from noise to samples.

    Classifier-free guidance (arXiv 2207.12598), u + guidance (c - u), is applied at times within `interval`
    (arXiv 2404.07724), where it costs a second prediction u without the condition; guidance 1 is off. With a `weaker`
    model, u is that model's prediction with the condition (autoguidance, arXiv 2406.02070). Guidance by the given parts
    adds (given_guidance - 1) (c - h), where h is a further prediction with these hidden. A model distilled for few
    steps (`ditmoe.diffusion.few_steps`) takes the guidance scale as input, which then costs nothing.

    Args:
        scheduler: from `make_scheduler`.
        asked: the condition of each sample.
        steps: number of scheduler steps.
        guidance: a number, or a function called before each step that returns it.
        negative: the condition of u; None is the null condition.
        weaker: a model of the same process and the same samples, in place of a negative condition.
        generators: one per sample, or one for all, for schedulers that add noise.
        schedule: times or sigmas in place of evenly spaced steps, see `set_timesteps`.
        step_options: further arguments of the scheduler's `step`, such as eta.
        times: maps the scheduler's time, a scalar, to the model's times (a shape of `ditmoe.nn.layout`), such as 0 for
            given frames; None repeats it for each sample. The scheduler steps all numbers alike.
        given: given parts of the samples; those marked as known are returned unchanged.
        first_block_cache: threshold of `ditmoe.nn.FirstBlockCache`, for a `DiTMoE`; 0 is off.
        on_step: called after each step, and once for each step that `given.strength` skips.
        watch: called with the index of each step, its time and the samples after it; returns the samples to continue
            with, and whether to stop.

    Raises:
        ValueError: if samples are not finite: after the step on a CPU, at the end on a GPU, to avoid synchronisation.
            Also for options that a distilled model does not support.
    """
    strength = guidance() if callable(guidance) else guidance
    tell = telling(model, scheduler, steps, strength, interval, negative, own_times=bool(schedule))
    if weaker is not None:
        check_weaker(model, weaker, negative)
    _set_times(scheduler, process, model, noise, steps, schedule)
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
    network = Network.of(model, first_block_cache)
    other = None if weaker is None else Network.of(weaker, first_block_cache)
    predict = Predictor(process, network, other, asked, interval, negative, held, given_guidance, tell, times)
    finite = Finite()
    ends = [*scheduler.timesteps[1:].tolist(), 0.0]
    for step, (t, end) in enumerate(zip(scheduler.timesteps[first:], ends[first:], strict=True)):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        strength = guidance() if callable(guidance) else guidance
        output = predict(scaled, t, float(t) - end, strength)
        x = scheduler.step(output, t, x, **extra, return_dict=False)[0]
        finite.add(x, float(t), strength)
        on_step()
        if watch is not None:
            x, stop = watch(step, t, x)
            if stop:
                break
    finite.check()
    return x if held is None else held.put_back(x)


def _set_times(
    scheduler: Any,
    process: Process,
    model: nn.Module,
    noise: Float[Tensor, "B *sample"],
    steps: int,
    schedule: Mapping[str, Sequence[float]],
) -> None:
    """Set the scheduler's times; evenly spaced ones are shifted by the process for the number of tokens."""
    # On the host, so that no step synchronises with a GPU to read its time.
    set_timesteps(scheduler, steps, torch.device("cpu"), **schedule)
    if getattr(process, "tokens", None) is not None and not schedule:
        tokens = math.prod(model.tokens.grid(noise))  # type: ignore[operator, union-attr]
        scheduler.timesteps = process.shifted(scheduler.timesteps, tokens)  # type: ignore[attr-defined]
        scheduler.sigmas = process.shifted(HORIZON * scheduler.sigmas, tokens) / HORIZON  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Predictor:
    """Makes the scheduler's predictions: guided, and exact where a part of the sample is known.

    Attributes:
        network, weaker: the model, and the weaker one if guidance uses one.
        tell: adds the step's properties to the condition of a distilled model; None for other models.
        others: the arguments of `denoise` of the same names.
    """

    process: Process
    network: Network
    weaker: Network | None
    asked: Condition
    interval: Sequence[float]
    negative: Condition | None
    held: Held | None
    given_guidance: float
    tell: Telling | None
    times: Callable[[Tensor], Float[Tensor, "*t"]] | None

    def __call__(
        self, x: Float[Tensor, "B *sample"], t: Tensor, span: float, strength: float
    ) -> Float[Tensor, "B *sample"]:
        """The prediction for the scheduler at time t, for a step of length `span`."""
        inside = self.interval[0] <= float(t) <= self.interval[1]
        each, asked, weight = expanded(t, x), self.asked, strength if inside else 1.0
        shown, told = self._shown(x, t, each)
        if told.ndim > 1:
            each = self.network.model.tokens.sample_times(told, shown)
        if self.tell is not None:
            known = None if self.held is None else self.held.places
            asked = self.tell(asked, told, span, strength, known)
            weight = weight if self.tell.weights is None else 1.0
        hidden = None
        if self.held is not None and inside and self.given_guidance != 1.0 and self.held.can_hide:
            hidden = View(*self.held.shown(x, t, hide=True), asked.hiding)
        view = View(shown, told, asked)
        output = guided(self.network, view, weight, self.negative, hidden, self.given_guidance, self.weaker)
        output = self.process.to_scheduler_output(output, shown, each)
        return output if self.held is None else self.held.steered(output, t)

    def _shown(
        self, x: Float[Tensor, "B *sample"], t: Tensor, each: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B *sample"], Float[Tensor, "B *f"]]:
        """The samples and times for the model; times are on the host for a model that reads them as numbers."""
        if self.held is not None:
            return self.held.shown(x, t)
        if self.times is not None:
            return x, self.times(t).float().to(x.device)
        networks = [self.network] if self.weaker is None else [self.network, self.weaker]
        reads = any(getattr(network.model, "reads_times", False) for network in networks)
        return x, t.expand(len(x)).float() if reads else each


def check_weaker(model: Any, weaker: Any, negative: Condition | None) -> None:
    """Raise ValueError unless a weaker model can guide this one."""
    if negative is not None:
        raise ValueError("negative must be left out: guidance leads away from guidance_model")
    if any(getattr(each, "step_embedding", None) is not None for each in (model, weaker)):
        raise ValueError(
            "guidance_model must be left out: a model that was distilled for few steps takes none"
        )


@dataclass
class Finite:
    """Checks that the samples of all steps are finite: at once on a CPU, at the end on a GPU, which synchronises."""

    steps: list[tuple[Tensor, float, float]] = field(default_factory=list)

    def add(self, x: Float[Tensor, "B *sample"], time: float, guidance: float) -> None:
        """Add the samples after the step at a time."""
        self.steps.append((x.isfinite().all(), time, guidance))
        if x.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raise ValueError that names the first time and guidance at which some were not."""
        finite = torch.stack([each for each, _, _ in self.steps]).tolist() if self.steps else []
        for (_, time, strength), each in zip(self.steps, finite, strict=True):
            if not each:
                raise ValueError(
                    f"samples are no longer finite at time {time:.0f}: lower guidance={strength:g}, take another "
                    "scheduler, or train on"
                )
        self.steps.clear()
