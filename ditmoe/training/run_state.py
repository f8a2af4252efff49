"""What a run keeps between two commands: the parts of a checkpoint, and a folder that is one run's alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ditmoe import checkpoint
from ditmoe.checkpoint import manifest
from ditmoe.distributed import Ranks, is_spread, local
from ditmoe.model import DiTMoE
from ditmoe.outside import printable
from ditmoe.training.ema import EMA
from ditmoe.training.grad_guard import Guard
from ditmoe.training.meter import Meter


@dataclass(frozen=True)
class RunState:
    """All that changes from step to step but the number of the step.

    Attributes:
        carried: what the checkpoint carries besides: "config", "facts" and "command".
    """

    model: DiTMoE
    ema: EMA
    optimizer: torch.optim.Optimizer
    meter: Meter
    guard: Guard
    carried: Mapping[str, Any]

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds, by part; the optimiser's state has the parameters' names."""
        # loads DTensor and SymPy, a second that only who trains should wait for
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
            "meter": self.meter.state(),
            "guard": self.guard.state(),
            **self.carried,
        }

    def fill(self, found: checkpoint.Checkpoint) -> None:
        """Take everything from a checkpoint, in place."""
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

        checkpoint.fill(found, "model", self.model.state_dict())
        checkpoint.fill(found, "ema", self.ema.model.state_dict())
        own = get_optimizer_state_dict(self.model, self.optimizer)
        checkpoint.fill(found, "optimizer", own)
        _check_moments(own, found.path)
        set_optimizer_state_dict(self.model, self.optimizer, own)
        self.meter.load_state(found.part("meter"))
        self.guard.load_state(found.part("guard"))


def _check_moments(state: Mapping[str, Any], file: Path) -> None:
    """Refuse squares and numbers of steps below zero, whose roots would make every weight NaN and the average with it.

    Raises:
        ValueError: naming the first; what is spread over processes is not looked at.
    """
    for name, value in manifest.split(state)[1].items():
        last = name.rpartition("/")[2]
        if ("sq" in last or last == "step") and not is_spread(value) and (value < 0).any():
            raise ValueError(
                f"{file} holds what no optimiser has, a negative number: optimizer/{printable(name)}"
            )


def not_finite(parts: Mapping[str, Any]) -> str | None:
    """The first tensor of a state that holds numbers that are not finite; of what is spread, this rank's part."""
    for part in ("model", "ema", "optimizer"):
        for name, value in manifest.split(parts[part])[1].items():
            if value.is_floating_point() and not local(value).isfinite().all():
                return f"{part}/{printable(name)}"
    return None


class FolderLock:
    """Keeps other processes from training in a run's folder; may be taken again by who has it.

    Args:
        folder: of the run.
        ranks: all of which ask for it together; the first one holds it for all.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.taken = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the folder to oneself.

        Raises:
            ValueError: on all ranks, if another process is training in it.
        """
        if self.taken:
            yield
            return
        with self.ranks.of_first(lambda: checkpoint.exclusive_lock(self.folder)):
            self.taken = True
            try:
                yield
            finally:
                self.taken = False
