"""What every module is that embeds what is asked for."""

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
    """What blocks, routers and heads see of a condition.

    Attributes:
        vector: joins the time in what modulates.
        null: which samples are unconditional.
        tokens: what blocks attend to, None for nothing.
        mask: which of them are tokens and not padding, at least one for each sample; None is all.
    """

    vector: Float[Tensor, "B D"]
    null: Bool[Tensor, " B"]
    tokens: Float[Tensor, "B L D"] | None = None
    mask: Bool[Tensor, "B L"] | None = None

    def take(self, rows: Shaped[Tensor, " n"]) -> "Embedded":
        """That of some samples."""
        tokens, mask = (None if x is None else x[rows] for x in (self.tokens, self.mask))
        return Embedded(self.vector[rows], self.null[rows], tokens, mask)


class Conditioning(nn.Module, ABC):
    """Embeds what is asked for; chosen in `configs/conditioning/`, made for a width and a number of classes.

    Nothing that hands conditions on, no trainer, sampler, pipeline or modality, knows which one it is. Training data
    give what they have, class indices or whole conditions; `read` says what that means here.

    Attributes:
        words: what a command may ask for: word -> what it means, for the line that answers a mistake.
        away_words: those of them that only say what guidance leads away from (`away`).
        gives_tokens: whether `Embedded.tokens` are there, to which blocks of the model then attend.
        reads_captions: whether it is for data with captions (`ditmoe.modality.Captions`). Such a class has a method
            `remember(section, captions)`: from its options, made, and captions of the training, further options that
            a checkpoint must have.
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
        """By which messages speak of it."""
        return type(self).__name__

    @abstractmethod
    def forward(self, condition: Condition) -> Embedded:
        """Embed; a sample of `condition.null` gets one embedding, whatever its values."""

    @abstractmethod
    def nothing(self, num: int) -> Condition:
        """What asks for nothing, so many times; a plan counts with it."""

    @abstractmethod
    def ask(
        self, num: int, classes: Sequence[str], generator: torch.Generator | None = None, **words: Any
    ) -> Condition:
        """What the words of a command ask for, for `num` samples; without any of its words what is worth looking at.

        Args:
            num: of samples, unless a word is a list with something for each.
            classes: names.
            generator: for what is to be drawn at random.
            words: of `words`; None is as if it were not there.

        Raises:
            ValueError: one line that says what would be right.
        """

    def is_told(self, words: Mapping[str, Any]) -> bool:
        """Whether words of a command say what is drawn; None is as if a word were not there."""
        return any(value is not None for word, value in words.items() if word not in self.away_words)

    def away(self, asked: Condition, **words: Any) -> Condition | None:
        """What guidance is to lead away from by the words of a command, beside what is asked for; None is nothing.

        Raises:
            ValueError: one line that says what would be right.
        """
        return None

    def adopted(self, weights: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
        """Own tensors, by name, that start from others of another kind of conditioning: their names there, and values.

        Args:
            weights: of the whole other model.
        """
        return {}

    def read(self, asked: Any) -> Condition:
        """What a batch of training data or a caller of the model gives: a condition as it is; or class indices.

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
        """Initial values for which `ditmoe.model.initialization` has no rule; called without gradient."""
