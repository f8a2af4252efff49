"""The interface of pretrained text encoders: from a caption to states of its tokens and one vector, never trained."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from ditmoe.outside import check_number, printable

LONGEST_LIMIT, WIDEST = 4096, 65_536
"""Most tokens of a caption, and largest width of a state."""


@dataclass(frozen=True)
class States:
    """An encoder's output for one caption.

    Attributes:
        tokens: last hidden states of its tokens, including special ones; at least one.
        pooled: one vector for the whole caption.
    """

    tokens: Float16[Tensor, "L W"]
    pooled: Float16[Tensor, " P"]

    @staticmethod
    def of(tokens: Float[Tensor, "L W"], pooled: Float[Tensor, " P"]) -> "States":
        """States in half precision on the CPU, clamped to its range.

        Raises:
            ValueError: if a number is not finite.
        """
        most = torch.finfo(torch.float16).max
        halves = [x.detach().float().cpu().clamp(-most, most).half() for x in (tokens, pooled)]
        if not all(half.isfinite().all() for half in halves):
            raise ValueError("a text encoder gave numbers that are not finite")
        return States(*halves)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.tokens.nbytes + self.pooled.nbytes


@dataclass(frozen=True)
class About:
    """The description of an encoder that a checkpoint stores in place of its weights.

    Attributes:
        name: for messages.
        width, pooled: W of the token states, P of the pooled vector.
        empty: number of tokens of the empty caption.
        fingerprint: SHA-256 of weights, tokenizer and limit; equal fingerprints give equal states.
    """

    name: str
    width: int
    pooled: int
    empty: int
    fingerprint: str

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> "About":
        """Read it from a configuration.

        Raises:
            ValueError: if it is not valid.
        """
        if set(kept) != set(cls.__dataclass_fields__):
            raise ValueError(f"about must have {', '.join(cls.__dataclass_fields__)}, got {', '.join(kept)}")
        for option, most in {"width": WIDEST, "pooled": WIDEST, "empty": LONGEST_LIMIT}.items():
            check_number(f"about.{option}", kept[option], 1, most, whole=True)
        if not isinstance(kept["name"], str) or printable(kept["name"]) != kept["name"]:
            raise ValueError("about.name must be text that can be printed")
        if not isinstance(kept["fingerprint"], str) or not re.fullmatch("[0-9a-f]{64}", kept["fingerprint"]):
            raise ValueError("about.fingerprint must be 64 digits of SHA-256")
        return cls(**kept)

    def plain(self) -> dict[str, Any]:
        """Plain values for a configuration."""
        return asdict(self)


class Pretrained(ABC):
    """A text encoder with weights in files, which are opened on first use.

    A class lists in `opens` its options that are paths or hub names. Copies of a model share the encoder.

    Args:
        limit: most tokens of a caption.
    """

    opens: ClassVar[tuple[str, ...]] = ()

    def __init__(self, limit: int = 64) -> None:
        check_number("limit", limit, 3, LONGEST_LIMIT, whole=True)
        self.limit = limit
        self._about: About | None = None

    def __deepcopy__(self, memo: Any) -> "Pretrained":
        return self

    @property
    def about(self) -> About:
        """The description of the encoder; the files are read once."""
        if self._about is None:
            self._about = self.describe()
        return self._about

    @abstractmethod
    def describe(self) -> About:
        """Describe the encoder from its files.

        Raises:
            ValueError, OSError: one line, if they do not exist, with what to install or which option to give.
        """

    @abstractmethod
    def at(self, path: Any) -> "Pretrained":
        """The same encoder with files from elsewhere: a folder or a hub name, or two of them for a `Pair`."""

    @abstractmethod
    def encode(self, caption: str, device: torch.device) -> States:
        """States of a caption, truncated to `limit` tokens."""

    def encode_all(self, captions: Sequence[str], device: torch.device) -> list[States]:
        """States of each caption, bit for bit those of `encode`, whatever other captions there are: runs resume
        exactly. An encoder that is faster with several captions at a time overrides this."""
        return [self.encode(caption, device) for caption in captions]

    def states_of(self, captions: Sequence[str], device: torch.device) -> list[States]:
        """States of captions (`encode_all`); ValueError if they are not as wide as `about` says."""
        every = self.encode_all(captions, device)
        widths = (self.about.width,), (self.about.pooled,)
        if any((states.tokens.shape[-1:], states.pooled.shape) != widths for states in every):
            raise ValueError(f"{self.about.name} gave states of another width than it said")
        return every

    @abstractmethod
    def count(self, caption: str) -> tuple[int, int]:
        """The number of tokens of a caption before truncation, and how many of them are unknown to the encoder."""
