"""Given parts of samples during the steps of a scheduler."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.diffusion.process import HORIZON, Process
from ditmoe.given import Given


def expanded(t: Tensor, x: Float[Tensor, "B *sample"]) -> Float[Tensor, " B"]:
    """The scheduler's time, repeated for each sample, on the samples' device."""
    return t.expand(len(x)).float().to(x.device, non_blocking=True)


class Held:
    """Given parts of samples during the steps of a scheduler.

    Where known, the model sees clean values at time 0; with replacement, and for partly given positions, it sees them
    at the noise level of the step. The scheduler gets the exact prediction there, so that its history of earlier steps
    stays on the path too.
    """

    def __init__(self, given: Given, process: Process, noise: Float[Tensor, "B *sample"]) -> None:
        self.given, self.process, self.noise = given, process, noise
        self.known = None if given.known is None else given.known.expand_as(noise)
        self.fixed = self.known
        if given.pieces is not None and self.known is not None:
            self.fixed = self.known | given.pieces.expand_as(noise)
        self.places = given.places if self.known is not None else None
        self.can_hide = self.places is not None or bool(given.beside)
        if self.places is None:
            return
        self.clean = self._at(torch.zeros(len(noise), device=noise.device))

    def shown(self, scaled: Tensor, t: Tensor, hide: bool = False) -> tuple[Tensor, Tensor]:
        """The model's noisy input and times at a scheduler's time; with `hide`, the given parts are pure noise."""
        time = expanded(t, scaled)
        if self.known is None or self.fixed is None:
            return scaled, time
        if self.places is None or self.fixed is not self.known:
            scaled = torch.where(self.fixed, self._at(time), scaled)
        if self.places is None:
            return scaled, time
        value, of = (self.noise, self.process.last) if hide else (self.clean, 0.0)
        told = torch.where(self.places, of, time[:, None])
        return torch.where(self.known, value, scaled), told

    def steered(self, output: Tensor, t: Tensor) -> Tensor:
        """The prediction for the scheduler, exact where known."""
        if self.fixed is None:
            return output
        time = expanded(t, output)
        target = self.process.target(self.given.x, self.noise, time)
        exact = self.process.to_scheduler_output(target, self._at(time), time)
        return torch.where(self.fixed, exact, output)

    def put_back(self, x: Tensor) -> Tensor:
        """The samples, with the given values where known."""
        return x if self.fixed is None else torch.where(self.fixed, self.given.x, x)

    def _at(self, time: Tensor) -> Tensor:
        return self.process.corrupt(self.given.x, self.noise, time)


def start_from(
    process: Process, scheduler: Any, given: Given, noise: Float[Tensor, "B *sample"]
) -> tuple[Float[Tensor, "B *sample"], int]:
    """The given samples noised to their strength, in the scheduler's scale, and the step to start from (SDEdit)."""
    order = getattr(scheduler, "order", 1)
    times = scheduler.timesteps.tolist()
    later = [i for i in range(0, len(times), order) if times[i] <= given.strength * HORIZON]
    first = later[0] if later else (len(times) - 1) // order * order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    time, one = scheduler.timesteps[first], noise.new_ones(1)
    unit = scheduler.scale_model_input(one, time) if hasattr(scheduler, "scale_model_input") else one
    return process.corrupt(given.x, noise, expanded(time, noise)) / unit, first
