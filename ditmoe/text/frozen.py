"""States of captions from a frozen, pretrained encoder: each is encoded once, and cached in memory within bounds."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ditmoe.text.caption_states import CaptionStates
from ditmoe.text.encoder import About, Pretrained, States

TOKENS, MASK, POOLED = "tokens", "mask", "pooled"
"""Names of the states among the values of a condition."""
ROUND = 8
"""Token sequences are padded to a multiple of this, which gives few shapes for `trainer.compile`."""
MOST_BYTES = 2**28
"""Most bytes of states that are kept in memory."""


class Lookup:
    """States by caption: from memory, else from those that `prepare` wrote, else from the encoder. Copies share it."""

    def __init__(self, encoder: Pretrained, about: About | None, folder: Path | None) -> None:
        self.encoder, self.folder = encoder, folder
        self.remembered = about
        self.kept: OrderedDict[str, States] = OrderedDict()
        self.size = self.encoded = 0
        self._stored: CaptionStates | None = None
        self._opened = False

    def __deepcopy__(self, memo: Any) -> "Lookup":
        return self

    @property
    def about(self) -> About:
        """The encoder's description in the checkpoint, else that of its files."""
        return self.encoder.about if self.remembered is None else self.remembered

    def __call__(self, captions: Sequence[str], device: torch.device) -> list[States]:
        """States of captions, on the CPU."""
        every = self._found(list(dict.fromkeys(captions)), device)
        for caption, states in every.items():
            if caption not in self.kept:
                self.kept[caption] = states
                self.size += states.nbytes
            self.kept.move_to_end(caption)
        while self.size > MOST_BYTES and len(self.kept) > 1:
            self.size -= self.kept.popitem(last=False)[1].nbytes
        return [every[caption] for caption in captions]

    def check(self) -> None:
        """Raises ValueError, in one line, if the encoder is not the one that the checkpoint was trained with."""
        if self.remembered is None or self.encoder.about == self.remembered:
            return
        now, then = self.encoder.about, self.remembered
        raise ValueError(
            f"the text encoder must be that of training, {then.name} ({then.fingerprint[:8]}), got "
            f"{now.name} ({now.fingerprint[:8]}): other weights, another tokenizer or limit"
        )

    def _found(self, captions: Sequence[str], device: torch.device) -> dict[str, States]:
        found = {caption: self.kept[caption] for caption in captions if caption in self.kept}
        for caption in captions:
            if caption not in found and (states := self._read(caption)) is not None:
                found[caption] = states
        if missing := [caption for caption in captions if caption not in found]:
            self.check()
            self.encoded += len(missing)
            found |= zip(missing, self.encoder.states_of(missing, device), strict=True)
        return found

    def _read(self, caption: str) -> States | None:
        if not self._opened:
            self._opened = True
            if self.folder is not None:
                self._stored = CaptionStates.open(self.folder, self.about)
        return None if self._stored is None else self._stored.get(caption)


class Frozen(nn.Module):
    """A pretrained encoder within a model: holds only its states of the empty caption, for unconditional samples.

    The encoder's weights are not part of the model: not of checkpoints, averages, optimisers or exported pipelines.

    Args:
        encoder: its weights are opened when a caption is first encoded.
        about: its description in a checkpoint; None reads its files.
        folder: with states that `prepare` wrote; None for none.
        tokens, pooled: whether the model reads token states, and the pooled vector.
    """

    null_tokens: Tensor
    null_pooled: Tensor
    learns_words: ClassVar[bool] = False

    def __init__(
        self,
        encoder: Pretrained,
        about: About | None,
        folder: Path | None = None,
        tokens: bool = True,
        pooled: bool = True,
    ) -> None:
        super().__init__()
        self.lookup = Lookup(encoder, about, folder)
        about = self.lookup.about
        self.limit, self.width, self.pooled_width = encoder.limit, about.width, about.pooled
        self.values = (*((TOKENS, MASK) if tokens else ()), *((POOLED,) if pooled else ()))
        if tokens:
            self.register_buffer("null_tokens", torch.zeros(about.empty, about.width))
        if pooled:
            self.register_buffer("null_pooled", torch.zeros(about.pooled))

    def initialize(self) -> None:
        """Set the states of the empty caption, except on the meta device.

        If the checkpoint's encoder is not available, they stay zero, until they are loaded with the weights.
        """
        buffers = dict(self.named_buffers())
        if any(buffer.is_meta for buffer in buffers.values()):
            return
        if self.lookup.remembered is not None:
            try:
                self.lookup.check()
            except (ValueError, OSError):
                return
        states = self.lookup([""], next(iter(buffers.values())).device)[0]
        if TOKENS in self.values:
            if states.tokens.shape != buffers["null_tokens"].shape:
                raise ValueError(
                    f"{self.lookup.about.name} gave {len(states.tokens)} states to the empty caption"
                )
            buffers["null_tokens"].copy_(states.tokens)
        if POOLED in self.values:
            buffers["null_pooled"].copy_(states.pooled)

    def count(self, caption: str) -> tuple[int, int]:
        """As `Pretrained.count`."""
        self.lookup.check()
        return self.lookup.encoder.count(caption)

    def read(self, captions: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """States of captions, padded with zeros, and the mask of tokens; "" has none, and needs no encoder."""
        every = dict(zip(there := [c for c in captions if c], self.lookup(there, device), strict=True))
        found = [every.get(caption) for caption in captions]
        values = {}
        if TOKENS in self.values:
            longest = max([len(self.null_tokens), *(len(states.tokens) for states in found if states)])
            shape = len(found), -(-longest // ROUND) * ROUND
            values[TOKENS] = torch.zeros(*shape, self.width, dtype=torch.float16)
            values[MASK] = torch.zeros(shape, dtype=torch.bool)
            for row, states in enumerate(found):
                if states is not None:
                    values[TOKENS][row, : len(states.tokens)] = states.tokens
                    values[MASK][row, : len(states.tokens)] = True
        if POOLED in self.values:
            nothing = torch.zeros(self.pooled_width, dtype=torch.float16)
            rows = [nothing if states is None else states.pooled for states in found]
            values[POOLED] = torch.stack(rows) if rows else nothing[None][:0]
        return values

    def blank(self, num: int) -> dict[str, Tensor]:
        """Values of `num` unconditional samples, padded to the longest caption."""
        length = max(self.limit, ROUND if TOKENS not in self.values else len(self.null_tokens))
        every: dict[str, Tensor] = {
            TOKENS: torch.zeros(num, length, self.width, dtype=torch.float16),
            MASK: torch.zeros(num, length, dtype=torch.bool),
            POOLED: torch.zeros(num, self.pooled_width, dtype=torch.float16),
        }
        return {name: every[name] for name in self.values}

    def forward(
        self, values: Mapping[str, Tensor], null: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B L W"] | None, Bool[Tensor, "B L"] | None, Float[Tensor, "B P"] | None]:
        """Token states, the mask of tokens, and pooled vectors; `null` selects those of the empty caption."""
        tokens = mask = pooled = None
        if TOKENS in self.values:
            own, length = len(self.null_tokens), values[TOKENS].shape[1]
            rest = length - own
            nothing = nn.functional.pad(self.null_tokens, (0, 0, 0, rest))
            there = torch.arange(length, device=null.device) < own
            tokens = torch.where(null[:, None, None], nothing, values[TOKENS].float())
            mask = torch.where(null[:, None], there, values[MASK])
        if POOLED in self.values:
            pooled = torch.where(null[:, None], self.null_pooled, values[POOLED].float())
        return tokens, mask, pooled
