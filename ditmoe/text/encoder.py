"""What every pretrained text encoder is: captions in, states of its tokens and one vector out; it is never trained."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from ditmoe.outside import check_number, printable

LONGEST_LIMIT, WIDEST = 4096, 65_536
"""Tokens of a caption, and numbers of a state, at most."""


@dataclass(frozen=True)
class States:
    """What an encoder says of one caption.

    Attributes:
        tokens: the last states of its tokens, special ones too; never none.
        pooled: one vector of the whole.
    """

    tokens: Float16[Tensor, "L W"]
    pooled: Float16[Tensor, " P"]

    @staticmethod
    def of(tokens: Float[Tensor, "L W"], pooled: Float[Tensor, " P"]) -> "States":
        """In half precision on the host, as they are kept.

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
        """Of memory."""
        return self.tokens.nbytes + self.pooled.nbytes


@dataclass(frozen=True)
class About:
    """What a checkpoint keeps of an encoder, whose weights it does not have.

    Attributes:
        name: for messages.
        width, pooled: W of the states of tokens, P of the pooled vector.
        empty: tokens of the empty caption.
        fingerprint: SHA-256 of weights, tokenizer and limit: equal ones give equal states.
    """

    name: str
    width: int
    pooled: int
    empty: int
    fingerprint: str

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> "About":
        """From a configuration.

        Raises:
            ValueError: if it is none.
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
        """As a configuration has it."""
        return asdict(self)


class Pretrained(ABC):
    """A text encoder whose weights lie in files, which are opened when it is first asked for something.

    A class names in `opens` the options that are paths or names on the hub. Copies of a model share one.
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
        """Of the files, which are read for it once."""
        if self._about is None:
            self._about = self.describe()
        return self._about

    @abstractmethod
    def describe(self) -> About:
        """Of the files.

        Raises:
            ValueError, OSError: one line, if they are not there: what to install, or which option to give.
        """

    @abstractmethod
    def at(self, path: Any) -> "Pretrained":
        """The same with its files elsewhere: a folder or a name on the hub, or two of an encoder that is two."""

    @abstractmethod
    def encode(self, caption: str, device: torch.device) -> States:
        """States of a caption, cut behind `limit` tokens.

        Each caption by itself, so that its states do not depend on what else is asked for, and runs resume to the bit.
        """

    def states_of(self, caption: str, device: torch.device) -> States:
        """States of a caption (`encode`); ValueError if they are not as wide as `about` says."""
        states = self.encode(caption, device)
        if states.tokens.shape[-1:] != (self.about.width,) or states.pooled.shape != (self.about.pooled,):
            raise ValueError(f"{self.about.name} gave states of another width than it said")
        return states

    @abstractmethod
    def count(self, caption: str) -> tuple[int, int]:
        """How many tokens a caption has before it is cut, and how many of them stand for what the encoder never saw."""
