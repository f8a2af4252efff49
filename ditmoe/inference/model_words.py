"""Options on the model and its memory that `sample`, `evaluate` and `demo` share (docs/sampling.md)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from ditmoe.config.restore import Restored, restore
from ditmoe.config.trust import Trust
from ditmoe.diffusion import Sampling, check_weaker
from ditmoe.model import LowMemory


@dataclass(frozen=True)
class ModelWords:
    """Options of the models of a command, which are checked before a model is opened.

    Args:
        checkpoint: a run's folder or a checkpoint in it.
        trust: paths and hub names that checkpoints may open, see `ditmoe.config.trust`.
        guidance_model: a run's folder or a checkpoint of a weaker model of the same samples, for autoguidance.
        first_block_cache: threshold of `ditmoe.nn.FirstBlockCache`; None: as in the checkpoint, usually off.
        weights, offload, expert_cache: storage of weights, see `LowMemory`.

    Raises:
        ValueError: with one line, for an invalid value.
    """

    checkpoint: str | Path
    trust: Trust = False
    guidance_model: str | Path | None = None
    first_block_cache: float | None = None
    weights: str | None = None
    offload: str | None = None
    expert_cache: float = LowMemory.expert_cache

    def __post_init__(self) -> None:
        self.memory()
        Sampling.check(first_block_cache=self.first_block_cache)

    def memory(self) -> LowMemory:
        """The options on the storage of weights."""
        return LowMemory(self.weights, self.offload, self.expert_cache)

    def said(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}

    def restore(self, top_k: int | None = None) -> Restored:
        """Load the checkpoint.

        Raises:
            FileNotFoundError, ValueError: with one line, see `ditmoe.config.restore`.
        """
        return restore(self.checkpoint, top_k, trusted=self.trust, memory=self.memory())

    def restore_weaker(self, restored: Restored) -> nn.Module | None:
        """Load the weaker model for autoguidance, without offloading; None for none.

        Raises:
            FileNotFoundError, ValueError: with one line, if it was trained on other samples than the main model, if it
                has another prediction, or if either model does not support autoguidance.
        """
        if self.guidance_model is None:
            return None
        weak = restore(self.guidance_model, trusted=self.trust, memory=LowMemory(self.weights))
        restored.meaning.check_weaker(weak.meaning, self.guidance_model)
        check_weaker(restored.model, weak.model, None)
        return weak.model

    def sampling(
        self,
        restored: Restored,
        steps: int | None = None,
        guidance: float | None = None,
        interval: Sequence[float] | None = None,
    ) -> Sampling:
        """The sampling options of the checkpoint, with these options and the arguments in their place.

        Raises:
            ValueError: with one line, also for a guidance model with guidance off.
        """
        found = Sampling.of(restored.config, steps, guidance, interval, self.first_block_cache)
        if self.guidance_model is not None:
            check_leads(found)
        return found


def check_leads(sampling: Sampling) -> None:
    """Raises ValueError if guidance is off, since a guidance model would have no effect."""
    if sampling.guidance == 1:
        raise ValueError("guidance must differ from 1 with guidance_model, which has no effect at 1")
