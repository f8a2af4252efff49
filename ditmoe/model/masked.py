"""Masked training: most input tokens are dropped, and all are predicted (FastDiT-3D, arXiv 2312.07231).

    kept = a fraction of the occupied tokens and a smaller one of the empty      h = encoder(kept)
    h'_i = W modulate(h_i) if i is kept else m, each plus its position           prediction = decoder(h')

The encoder, with its experts, then costs next to nothing; the decoder is a few blocks with window attention.
Nothing is dropped when sampling.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ditmoe.conditioning import Conditioning
from ditmoe.distributed import ALONE, Ranks
from ditmoe.modality import Tokens
from ditmoe.model.backbone import ATTENTION, MOST_LAYERS, DiTMoE
from ditmoe.model.block import Block, FinalLayer
from ditmoe.model.initialization import initialize_layers, initialize_token
from ditmoe.moe import Router, Routing
from ditmoe.nn import Attention, FeedForward, FirstBlockCache, Layout
from ditmoe.outside import check_number


class MaskedDiTMoE(DiTMoE):
    """A `DiTMoE` encoder of `depth` blocks on the kept tokens, and a decoder on all tokens.

    Args:
        mask_ratio: fractions of a sample's occupied and of its empty tokens (see `Tokens.occupied`) that training
            drops, or one number for both. Counts are exact, and at least one token is kept.
        decoder_depth: blocks of the decoder; they are dense and follow the encoder's in `blocks`.
        decoder_window: window size in tokens along each axis, with every second block's windows shifted by half.
        others: as in `DiTMoE`.
    """

    parameter_kinds: ClassVar[Mapping[str, str]] = {"mask_token": "token"}
    ranks: Ranks = ALONE
    """Ranks that share a batch: each draws its own part of the masks that one process would draw."""

    def __init__(
        self,
        tokens: Tokens,
        conditioning: int | Callable[..., Conditioning],
        hidden_size: int,
        depth: int,
        num_heads: int,
        router: Callable[..., Router] | None = None,
        mask_ratio: float | Sequence[float] = (0.95, 0.99),
        decoder_depth: int = 4,
        decoder_window: int = 4,
        dense_ratio: float = 4.0,
        dense_activation: str = "gelu_tanh",
        qk_norm: bool = False,
        modulation: str = "full",
        **others: Any,
    ) -> None:
        others |= {"dense_ratio": dense_ratio, "dense_activation": dense_activation, "qk_norm": qk_norm}
        others["modulation"] = modulation
        super().__init__(tokens, conditioning, hidden_size, depth, num_heads, router, **others)
        self.mask_ratio = check_ratio(mask_ratio)
        check_number("decoder_depth", decoder_depth, 1, MOST_LAYERS, whole=True)
        check_number("decoder_window", decoder_window, 1, whole=True)
        inner, turns = round(dense_ratio * hidden_size), ATTENTION["window"]
        decoder = [
            Block(
                hidden_size,
                Attention(hidden_size, num_heads, qk_norm),
                FeedForward(hidden_size, inner, dense_activation),
                turns[layer % len(turns)],
                [decoder_window] * tokens.axes,
                modulation=modulation,
            )
            for layer in range(decoder_depth)
        ]
        self.blocks.extend(decoder)
        self.bridge = FinalLayer(hidden_size, hidden_size)
        self.mask_token = nn.Parameter(torch.empty(hidden_size))
        initialize_layers(*decoder, self.bridge)
        initialize_token(self.mask_token)

    def predict(
        self,
        tokens: Float[Tensor, "R N P"],
        layout: Layout,
        t: Float[Tensor, "*t"],
        y: Any,
        cache: FirstBlockCache | None = None,
    ) -> tuple[Float[Tensor, "R N Q"], list[Routing], Float[Tensor, "*t"], Float[Tensor, "*t D"]]:
        if not self.training or not any(self.mask_ratio):
            h, routings, context = self.encode(tokens, layout, t, y, cache)
            h = self.bridge(h, context.c, layout)
        else:
            kept, counts = self.draw_kept(self.occupied(tokens), layout)
            some = layout.only(kept, counts)
            h, routings, context = self.encode(tokens.flatten(0, 1)[kept][None], some, t, y)
            seen = self.bridge(h, context.c, some)
            everywhere = self.mask_token.expand(*tokens.shape[:2], -1)
            h = put_back(seen, kept, everywhere)
            for i, routing in enumerate(routings):
                if routing.aux_prediction is not None:
                    nothing = routing.aux_prediction.new_zeros(
                        *tokens.shape[:2], routing.aux_prediction.shape[-1]
                    )
                    routings[i] = replace(
                        routing, aux_prediction=put_back(routing.aux_prediction, kept, nothing)
                    )
        h, angles = self.place(h, layout)
        for block in self.blocks[self.depth :]:
            h, _ = block(h, replace(context, layout=layout), context.c, angles)
        return self.final(h, context.c, layout), routings, context.t, context.c

    def occupied(self, tokens: Float[Tensor, "R N P"]) -> Bool[Tensor, " T"]:
        """Which tokens the first ratio applies to."""
        if self.mask_ratio[0] == self.mask_ratio[1]:
            return torch.ones_like(tokens[..., 0], dtype=torch.bool).flatten()
        return self.tokens.occupied(tokens).flatten()

    def draw_kept(self, occupied: Bool[Tensor, " T"], layout: Layout) -> tuple[Int[Tensor, " K"], list[int]]:
        """Sample the kept tokens: their ascending indices, and the number per sample.

        Uses torch's global generator, which the trainer seeds at each step.
        """
        kind = 2 * layout.sample + (~occupied).long()
        sizes = torch.bincount(kind, minlength=2 * len(layout.grids)).tolist()
        quotas = [
            round((1 - ratio) * n)
            for ratio, n in zip(self.mask_ratio * len(layout.grids), sizes, strict=True)
        ]
        for i in range(0, len(quotas), 2):
            if quotas[i] + quotas[i + 1] == 0:
                quotas[i if sizes[i] else i + 1] = 1
        order = self.ranks.drawn(torch.rand, layout.sample).argsort()
        order = order[kind[order].argsort(stable=True)]
        parts = zip(order.split(sizes), quotas, strict=True)
        kept = torch.cat([part[:quota] for part, quota in parts]).sort().values
        return kept, [sum(pair) for pair in zip(quotas[::2], quotas[1::2], strict=True)]


def put_back(
    some: Float[Tensor, "1 K D"], kept: Int[Tensor, " K"], others: Float[Tensor, "R N D"]
) -> Float[Tensor, "R N D"]:
    """All tokens: the kept ones from `some`, the rest from `others`."""
    return others.flatten(0, 1).index_copy(0, kept, some[0].type_as(others)).view_as(others)


def check_ratio(ratio: float | Sequence[float]) -> tuple[float, float]:
    """Return the ratios of occupied and of empty tokens.

    Raises:
        ValueError: unless given one or two numbers in [0, 1].
    """
    both = (ratio, ratio) if isinstance(ratio, int | float) else tuple(ratio)
    if len(both) != 2 or not all(isinstance(r, int | float) and 0 <= r <= 1 for r in both):
        raise ValueError(
            "mask_ratio must be one share in [0, 1], or two: of occupied and of empty tokens, "
            f"got {ratio if isinstance(ratio, int | float | str) else list(ratio)}"
        )
    return float(both[0]), float(both[1])
