"""What draws, and in how much memory: words that `sample`, `evaluate` and `demo` share (docs/sampling.md)."""

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
    """The models that draw by the words of a command, which are checked before any of them is opened.

    Args:
        checkpoint: a run's folder or a checkpoint in it.
        trust: paths and hub names that checkpoints may open, see `ditmoe.config.trust`.
        guidance_model: a run's folder or a checkpoint, of the same samples, that guidance leads away from.
        first_block_cache: threshold of `ditmoe.nn.FirstBlockCache`; None is what the checkpoint says, mostly none.
        weights, offload, expert_cache: how weights are kept, see `LowMemory`.

    Raises:
        ValueError: one line, for a word that no model can follow.
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
        """How weights are kept."""
        return LowMemory(self.weights, self.offload, self.expert_cache)

    def said(self) -> dict[str, Any]:
        """The words that are not as they are without being said."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}

    def restore(self, top_k: int | None = None) -> Restored:
        """The model that draws.

        Raises:
            FileNotFoundError, ValueError: one line, see `ditmoe.config.restore`.
        """
        return restore(self.checkpoint, top_k, trusted=self.trust, memory=self.memory())

    def restore_weaker(self, restored: Restored) -> nn.Module | None:
        """The model that guidance leads away from, whole on the device; None for none.

        Raises:
            FileNotFoundError, ValueError: one line, if it is of other samples than the one that draws, predicts
                something else, or if either takes no such guidance.
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
        """How the model is sampled by these words and others.

        Raises:
            ValueError: one line, also for guidance that is off and has a model to lead away from.
        """
        found = Sampling.of(restored.config, steps, guidance, interval, self.first_block_cache)
        if self.guidance_model is not None:
            check_leads(found)
        return found


def check_leads(sampling: Sampling) -> None:
    """Raises ValueError unless guidance is on, as it must be to lead away from another model."""
    if sampling.guidance == 1:
        raise ValueError("guidance must be another than 1 with guidance_model, from which it leads away")
