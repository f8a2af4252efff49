"""What the words of a command ask of a model, understood once for whoever draws it: a command, or a page."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ditmoe.conditioning import Condition
from ditmoe.config.limits import check_request
from ditmoe.config.restore import Restored
from ditmoe.config.words import GivenWords, parts_asked, split_words
from ditmoe.diffusion import check_weaker, torch_generator
from ditmoe.given import Parts


@dataclass(frozen=True)
class Request:
    """What is to be drawn.

    Attributes:
        restored: what is to draw it.
        asked: of each sample.
        negative: what guidance leads away from; None is nothing.
        shape: the modality's own words for the shape of a sample.
        wanted: the conditioning's words, by which the samples are called.
        of_given: the modality's words for what is given.
        parts: what is given.
        given_guidance: how much more samples are to follow it.
    """

    restored: Restored
    asked: Condition
    negative: Condition | None
    shape: Mapping[str, Any]
    wanted: Mapping[str, Any]
    of_given: Mapping[str, Any]
    parts: Parts | None = None
    given_guidance: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Of `draw_from`."""
        return {"parts": self.parts, "given_guidance": self.given_guidance, "negative": self.negative} | dict(
            self.shape
        )

    def with_given(
        self, given: Any = None, given_guidance: float = 1.0, strength: float | None = None
    ) -> "Request":
        """The same with what is given, read; None is nothing.

        Raises:
            ValueError, OSError: one line, for what cannot be read, and for words about it without it.
        """
        restored, conditioning = self.restored, self.restored.model.conditioning
        trained = restored.config["given"]
        parts = parts_asked(
            restored.modality, given, self.shape, self.of_given, trained, strength, given_guidance
        )
        untold = parts is not None and not conditioning.is_told(self.wanted)
        asked = self.asked.nothing if untold else self.asked
        return replace(self, asked=asked, parts=parts, given_guidance=given_guidance)


def ask(restored: Restored, num: int, seed: int, **words: Any) -> Condition:
    """What the words of a command ask the model of a checkpoint for."""
    return restored.model.conditioning.ask(
        num, restored.modality.classes, torch_generator("labels", seed), **words
    )


def understand(
    restored: Restored,
    num: int,
    seed: int,
    words: Mapping[str, Any],
    command: Callable[..., Any],
    *,
    batch_size: int = 32,
    weaker: nn.Module | None = None,
) -> Request:
    """Split words among those who know them, and ask for what they say; what is given is not read yet.

    Args:
        words: of the conditioning, of the modality, and of what it understands of given parts.
        command: whose own options may have been meant by a word that nobody knows.
        weaker: a model that guidance leads away from.

    Raises:
        ValueError: for words that nobody knows, or that say what cannot be drawn.
    """
    modality, conditioning = restored.modality, restored.model.conditioning
    options = inspect.signature(command).parameters
    wanted, shape, of_given = split_words(
        words, conditioning, modality, GivenWords(modality), options=options
    )
    check_request(modality, num, batch_size, **shape)
    asked = ask(restored, num, seed, **wanted)
    check_request(modality, len(asked), batch_size, **shape)
    negative = conditioning.away(asked, **wanted)
    if weaker is not None:
        check_weaker(restored.model, weaker, negative)
    return Request(restored, asked, negative, shape, wanted, of_given)
