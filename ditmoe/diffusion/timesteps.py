"""The timesteps of a diffusers scheduler: evenly spaced, or user-defined."""

import inspect
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from ditmoe.diffusion.process import HORIZON
from ditmoe.outside import check_number

MOST_STEPS = 10_000


def set_timesteps(
    scheduler: Any,
    steps: int,
    device: torch.device,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
) -> None:
    """Set evenly spaced steps from noise to data, correcting errors in diffusers' own times.

    Args:
        timesteps, sigmas: in place of even steps, for schedulers whose own `set_timesteps` takes them; for a flow they
            are the same up to the factor 1000. Used as they are, without a shift.

    Raises:
        ValueError: for more steps than a discrete process has; for times that the scheduler does not take, or that are
            not descending; for a scheduler that needs more than a number of steps.
    """
    from ditmoe.diffusion.schedulers import ends_short

    if timesteps is not None or sigmas is not None:
        return _set_own(scheduler, device, timesteps, sigmas)
    if ends_short(scheduler):
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], device=device)
        return None
    discrete = scheduler.config.get("trained_betas") is not None
    if discrete and steps > HORIZON:
        raise ValueError(f"steps must be at most {HORIZON} for process ddpm, got {steps}")
    try:
        scheduler.set_timesteps(steps, device=device)
    except (KeyError, TypeError) as error:  # such as those of a model with stages
        kind = type(scheduler).__name__
        raise ValueError(f"scheduler {kind} needs more than a number of steps to set its times") from error
    if scheduler.config.get("use_flow_sigmas", False):
        # Start from pure noise, except for a margin that keeps the logarithm of the data's coefficient finite. Times
        # must not be truncated to integers: they would be off by up to 1, and at 1000 steps two would be equal.
        scheduler.sigmas[0] = 1 - 1e-6
        scheduler.timesteps = HORIZON * scheduler.sigmas[:-1].to(device)
    elif discrete and len(scheduler.timesteps) > steps:
        # At 61, 103, 121, ... steps rounding adds a time -1 to "trailing" ones, which indexes the last, pure noise.
        scheduler.timesteps = scheduler.timesteps[:-1]
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = torch.cat([scheduler.sigmas[:-2], scheduler.sigmas[-1:]])
    return None


def _set_own(
    scheduler: Any, device: torch.device, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None
) -> None:
    """Set user-defined times; errors as in `set_timesteps`."""
    from ditmoe.diffusion.schedulers import ends_short

    if timesteps is not None and sigmas is not None:
        raise ValueError("only one of timesteps and sigmas can be said")
    name, given = ("timesteps", timesteps) if sigmas is None else ("sigmas", sigmas)
    if name not in inspect.signature(scheduler.set_timesteps).parameters:
        kind = type(scheduler).__name__
        raise ValueError(
            f"the current scheduler class {kind} does not support custom {name}: its set_timesteps does not take them"
        )
    flow = scheduler.config.get("use_flow_sigmas", False) or ends_short(scheduler)
    values = _checked(name, given, HORIZON if name == "timesteps" else 1.0 if flow else None)
    if not flow:
        own = [round(value) for value in values] if name == "timesteps" else values
        scheduler.set_timesteps(**{name: own}, device=device)
        return
    shares = torch.tensor(values) / (HORIZON if name == "timesteps" else 1)
    # Set up the scheduler for this number of steps, then replace its times: passing them would shift or ignore them.
    set_timesteps(scheduler, len(values), device)
    if scheduler.config.get("use_flow_sigmas", False):
        shares = shares.clamp(max=1 - 1e-6)
    scheduler.sigmas = torch.cat([shares, torch.zeros(1)]).to(scheduler.sigmas)
    scheduler.timesteps = HORIZON * scheduler.sigmas[:-1].to(device)


def _checked(name: str, given: Any, most: float | None) -> list[float]:
    """Validate descending numbers above 0.

    Raises:
        ValueError: for anything else.
    """
    values = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= MOST_STEPS:
        raise ValueError(f"{name} must be a list of 1 to {MOST_STEPS} numbers")
    for value in values:
        check_number(f"each of {name}", value, 0, math.inf if most is None else most)
    numbers = [float(value) for value in values]
    if any(later >= earlier for earlier, later in pairwise(numbers)):
        raise ValueError(f"{name} must fall from noise to data, got {numbers[:4]}")
    return numbers
