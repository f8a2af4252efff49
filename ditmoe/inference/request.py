"""What the words of a command ask of a model, understood once for whoever draws it: a command, or a page."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ditmoe.conditioning import Condition
from ditmoe.config.limits import check_request
from ditmoe.config.restore import Restored
from ditmoe.config.words import GivenWords, parts_asked, split_words
from ditmoe.diffusion import torch_generator
from ditmoe.given import Parts


@dataclass(frozen=True)
class Request:
    """What is to be drawn.

    Attributes:
        asked: of each sample.
        negative: what guidance leads away from; None is nothing.
        parts: what is given.
        given_guidance: how much more samples are to follow it.
        shape: the modality's own words for the shape of a sample.
        wanted: the conditioning's words, by which the samples are called.
    """

    asked: Condition
    negative: Condition | None
    parts: Parts | None
    given_guidance: float
    shape: Mapping[str, Any]
    wanted: Mapping[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """Of `draw_from`."""
        return {"parts": self.parts, "given_guidance": self.given_guidance, "negative": self.negative} | dict(
            self.shape
        )


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
    given: Any = None,
    given_guidance: float = 1.0,
    strength: float | None = None,
) -> Request:
    """Split words among those who know them, and ask for what they say.

    Args:
        words: of the conditioning, of the modality, and of what it understands of given parts.
        command: whose own options may have been meant by a word that nobody knows.

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
    trained = restored.config["given"]
    parts = parts_asked(modality, given, shape, of_given, trained, strength, given_guidance)
    if parts is not None and not conditioning.is_told(wanted):
        asked = asked.nothing
    return Request(asked, negative, parts, given_guidance, shape, wanted)
