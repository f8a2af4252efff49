"""Schedules over a run: learning rate and EMA."""

import math
from dataclasses import dataclass

from ditmoe.outside import check_number


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length of a run, learning-rate schedule and EMA decay.

    Attributes:
        steps: total optimiser steps.
        warmup: steps of linear warm-up of the learning rate, followed by `decay`.
        decay: "constant", "linear" or "cosine"; the last two end at zero.
        ema_decay: of the EMA weights, see `EMA`.
    """

    steps: int
    warmup: int = 100
    decay: str = "cosine"
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        check_number("trainer.steps", self.steps, 1, whole=True)
        check_number("trainer.warmup", self.warmup, 0, whole=True)
        if self.decay not in ("constant", "linear", "cosine"):
            raise ValueError(f"trainer.decay must be constant, linear or cosine, got {self.decay!r}")
        check_number("trainer.ema_decay", self.ema_decay, 0, below=1)

    def rate(self, step: int) -> float:
        """Factor on the learning rate at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.decay == "constant":
            return 1.0
        return 1 - progress if self.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
