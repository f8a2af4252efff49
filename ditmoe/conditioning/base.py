"""The base class of conditioning modules."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from ditmoe.conditioning.condition import Condition


@dataclass(frozen=True)
class Embedded:
    """An embedded condition, as used by blocks, routers and heads.

    Attributes:
        vector: added to the timestep embedding for the modulations.
        null: which samples are unconditional.
        tokens: for cross-attention; None: no tokens.
        mask: which of them are tokens and not padding, at least one per sample; None: all.
    """

    vector: Float[Tensor, "B D"]
    null: Bool[Tensor, " B"]
    tokens: Float[Tensor, "B L D"] | None = None
    mask: Bool[Tensor, "B L"] | None = None

    def take(self, rows: Shaped[Tensor, " n"]) -> "Embedded":
        """The embedding of selected samples."""
        tokens, mask = (None if x is None else x[rows] for x in (self.tokens, self.mask))
        return Embedded(self.vector[rows], self.null[rows], tokens, mask)


class Conditioning(nn.Module, ABC):
    """Embeds conditions; chosen in `configs/conditioning/`, made for a width and a number of classes.

    Trainer, sampler, pipeline and modality do not depend on the kind. Training data provide class indices or whole
    conditions; `read` interprets them.

    Attributes:
        words: the condition options of a command: name -> meaning, for error messages.
        away_words: those of them that only set what guidance steers away from (`away`).
        gives_tokens: whether there are `Embedded.tokens`, for the blocks' cross-attention.
        reads_captions: whether it is for data with captions (`ditmoe.modality.Captions`). Such a class has a method
            `remember(section, captions)`, which returns, from its instantiated options and the training captions,
            further options that a checkpoint must contain.
    """

    words: ClassVar[Mapping[str, str]] = {}
    away_words: ClassVar[Collection[str]] = ()
    gives_tokens: bool = False
    reads_captions: ClassVar[bool] = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @property
    def name(self) -> str:
        """Its name in messages."""
        return type(self).__name__

    @abstractmethod
    def forward(self, condition: Condition) -> Embedded:
        """Embed conditions; all samples of `condition.null` get the same embedding, whatever their values."""

    @abstractmethod
    def nothing(self, num: int) -> Condition:
        """The null condition for `num` samples; also used by a plan."""

    @abstractmethod
    def ask(
        self, num: int, classes: Sequence[str], generator: torch.Generator | None = None, **words: Any
    ) -> Condition:
        """Make the condition of `num` samples from command options; without any, one that is worth looking at.

        Args:
            num: of samples, unless an option is a list with one value per sample.
            classes: names.
            generator: for random choices.
            words: options named in `words`; None is as if missing.

        Raises:
            ValueError: one line that says what would be valid.
        """

    def is_told(self, words: Mapping[str, Any]) -> bool:
        """Whether command options set the condition; None is as if missing."""
        return any(value is not None for word, value in words.items() if word not in self.away_words)

    def away(self, asked: Condition, **words: Any) -> Condition | None:
        """The negative condition set by command options, for guidance to steer away from; None: the null condition.

        Raises:
            ValueError: one line that says what would be valid.
        """
        return None

    def adopted(self, weights: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
        """Tensors to initialise from another kind of conditioning: own name -> name there, and values.

        Args:
            weights: of the whole other model.
        """
        return {}

    def read(self, asked: Any) -> Condition:
        """Convert the input of a model call or training batch: a condition, returned unchanged, or class indices.

        Raises:
            ValueError: if it is neither.
        """
        if isinstance(asked, Condition):
            return asked
        if isinstance(asked, Tensor) and not asked.is_floating_point() and asked.ndim == 1:
            return Condition.of_labels(asked, self.num_classes)
        kind = f"{asked.dtype} {tuple(asked.shape)}" if isinstance(asked, Tensor) else type(asked).__name__
        raise ValueError(f"what is asked for must be a Condition or whole numbers (B,), got {kind}")

    def initialize(self) -> None:
        """Initialise what `ditmoe.model.initialization` has no rule for; called without gradient."""
