"""The state of a run between two commands: the parts of a checkpoint, and the lock of a run's folder."""

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
    """The state that changes during training, except for the step number.

    Attributes:
        carried: further content of checkpoints: "config", "facts" and "command".
    """

    model: DiTMoE
    ema: EMA
    optimizer: torch.optim.Optimizer
    meter: Meter
    guard: Guard
    carried: Mapping[str, Any]

    def parts(self) -> dict[str, Any]:
        """The content of a checkpoint, by part; the optimiser's state is keyed by parameter names."""
        # imports DTensor and SymPy, which takes a second: only for training
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
        """Load everything from a checkpoint, in place."""
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
    """Refuse negative second moments and step counts, whose roots would make all weights and their EMA NaN.

    Raises:
        ValueError: naming the first; sharded tensors are not checked.
    """
    for name, value in manifest.split(state)[1].items():
        last = name.rpartition("/")[2]
        if ("sq" in last or last == "step") and not is_spread(value) and (value < 0).any():
            raise ValueError(
                f"{file} must hold no negative second moments or step counts, got some: optimizer/{printable(name)}"
            )


def not_finite(parts: Mapping[str, Any]) -> str | None:
    """The name of the first tensor with non-finite values; of sharded ones only this rank's part is checked."""
    for part in ("model", "ema", "optimizer"):
        for name, value in manifest.split(parts[part])[1].items():
            if value.is_floating_point() and not local(value).isfinite().all():
                return f"{part}/{printable(name)}"
    return None


class FolderLock:
    """Reentrant lock that keeps other processes from training in a run's folder.

    Args:
        folder: of the run.
        ranks: all of which acquire it together; the first one holds it for all.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.taken = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock.

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
