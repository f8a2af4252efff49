"""A small vocabulary that is trained with the model, for short captions without a pretrained encoder."""

import zlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ditmoe.conditioning import split_words
from ditmoe.nn import CrossAttention, Layout, normalize
from ditmoe.outside import check_number

WORDS, PADDING, START = "words", 0, 1
"""Name of the values; indices of the padding and of the start token of each caption."""
MOST_WORDS = 50_000
"""Most words with a vector of their own, the most frequent ones of the training captions."""


class Learned(nn.Module):
    """An embedding of the words of the training captions, with positions and layers of attention between words.

    It is not pretrained: a word that is in no training caption shares one of `buckets` vectors with other such words.

    Args:
        width: W of a word's vector.
        limit: most words of a caption, including the start token; the rest is cut off.
        layers: attention layers.
        num_heads: attention heads; must divide `width`.
        buckets: vectors for unknown words.
        caption_words: the modality's words (`Captions.caption_words`), which a checkpoint stores with its facts.
    """

    learns_words: ClassVar[bool] = True
    values: ClassVar[tuple[str, ...]] = (WORDS,)

    def __init__(
        self,
        width: int = 128,
        limit: int = 64,
        layers: int = 1,
        num_heads: int = 4,
        buckets: int = 16,
        caption_words: Sequence[str] = (),
    ) -> None:
        super().__init__()
        bounds = {
            "width": (width, 4096),
            "limit": (limit, 1024),
            "layers": (layers, 16),
            "buckets": (buckets, 4096),
        }
        for name, (value, most) in bounds.items():
            check_number(name, value, 0 if name == "layers" else 1, most, whole=True)
        check_number("num_heads", num_heads, 1, width, whole=True)
        if width % num_heads:
            raise ValueError(f"num_heads must divide width, {width}, got {num_heads}")
        if isinstance(caption_words, str) or not all(isinstance(word, str) for word in caption_words):
            raise ValueError("caption_words must be a list of words")
        known = list(dict.fromkeys(caption_words))[:MOST_WORDS]
        self.numbers: Mapping[str, int] = {word: START + 1 + i for i, word in enumerate(known)}
        self.limit, self.buckets, self.width, self.pooled_width = limit, buckets, width, width
        self.table = nn.Embedding(START + 1 + len(known) + buckets, width)
        self.places = nn.Embedding(limit, width)
        self.layers = nn.ModuleList(CrossAttention(width, num_heads) for _ in range(layers))

    def read(self, captions: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Indices of the words, (B, L), padded with zeros."""
        rows = [
            [START, *(self._number(w) for w in split_words(caption)[: self.limit - 1])]
            for caption in captions
        ]
        longest = max(map(len, rows), default=1)
        return {
            WORDS: torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows]).view(len(rows), -1)
        }

    def blank(self, num: int) -> dict[str, Tensor]:
        """Values of `num` unconditional samples, padded to the longest caption."""
        return {WORDS: torch.full((num, self.limit), START)}

    def count(self, caption: str) -> tuple[int, int]:
        """The number of words of a caption, with the start token, and how many of them are unknown."""
        words = split_words(caption)
        return len(words) + 1, sum(word not in self.numbers for word in words)

    def forward(
        self, values: Mapping[str, Tensor], null: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B L W"], Bool[Tensor, "B L"], Float[Tensor, "B W"]]:
        """States of the words, the mask of words, and the mean of the states."""
        numbers: Int[Tensor, "B L"] = values[WORDS]
        first = torch.arange(numbers.shape[1], device=numbers.device) == 0
        numbers = torch.where(null[:, None], torch.where(first, START, PADDING), numbers)
        mask = numbers != PADDING
        x = self.table(numbers) + self.places.weight[: numbers.shape[1]]
        layout = Layout.even(numbers.shape[1:], len(numbers), numbers.device)
        for layer in self.layers:
            x = x + layer(normalize(x), x, mask, layout)
        shares = mask / mask.sum(1, keepdim=True)
        return x, mask, torch.einsum("blw,bl->bw", x, shares.type_as(x))

    def _number(self, word: str) -> int:
        unknown = START + 1 + len(self.numbers) + zlib.crc32(word.encode("utf-8", "replace")) % self.buckets
        return self.numbers.get(word, unknown)
