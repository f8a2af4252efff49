"""A request for samples, parsed from the options of a command or of the demo page."""

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
    """A request for samples.

    Attributes:
        restored: the checkpoint to sample from.
        asked: the condition of each sample.
        negative: the negative condition of each sample for guidance; None: the null condition.
        shape: options of the modality for the shape of a sample.
        wanted: options of the conditioning, which also name the samples' folder.
        of_given: options of the modality for given parts.
        parts: the given parts; None: none.
        given_guidance: guidance scale of the given parts; 1: none.
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
        """Arguments for `draw_from`."""
        return {"parts": self.parts, "given_guidance": self.given_guidance, "negative": self.negative} | dict(
            self.shape
        )

    def with_given(
        self, given: Any = None, given_guidance: float = 1.0, strength: float | None = None
    ) -> "Request":
        """The request with its given parts, which are read here.

        Raises:
            ValueError, OSError: with one line, if they cannot be read, or are missing while other options need them.
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
    """The conditions of samples for options of a command, see `Conditioning.ask`."""
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
    """Parse the options of a command into a request; given parts are not read yet.

    Args:
        words: options of the conditioning, and of the modality for shapes and given parts.
        command: its own options are suggested for a misspelt one.
        weaker: a weaker model for autoguidance.

    Raises:
        ValueError: for unknown options, and for values that cannot be sampled.
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
