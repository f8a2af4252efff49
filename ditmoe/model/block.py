"""The adaLN-Zero block and the final layer."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe import Context, MoE, Routing
from ditmoe.nn import Attention, CrossAttention, FeedForward, Layout, Modulation, modulate, normalize


class Block(nn.Module):
    """adaLN-Zero block: the conditioning modulates the input of both branches and gates their output.

    Between the branches tokens cross-attend to the conditioning tokens, if any; that branch is zero-initialised.
    """

    def __init__(
        self,
        hidden_size: int,
        attention: Attention,
        feed_forward: FeedForward | MoE,
        within: str = "all",
        window: Sequence[int] = (),
        cross_attention: CrossAttention | None = None,
        modulation: str = "full",
    ) -> None:
        super().__init__()
        self.within, self.window = within, tuple(window)
        self.shifts = modulation == "full"
        self.modulation = Modulation(hidden_size, 6 if self.shifts else 4)
        self.attention = attention
        self.cross_attention = cross_attention
        route = feed_forward.router if isinstance(feed_forward, MoE) else None
        self.stem = None if route is None else route.stem(hidden_size)
        self.feed_forward = feed_forward

    def forward(
        self,
        x: Float[Tensor, "R N D"],
        context: Context,
        c: Float[Tensor, "*t D"],
        angles: Float[Tensor, "N half"] | None = None,
    ) -> tuple[Float[Tensor, "R N D"], Routing | None]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulations(c, context.layout)
        groups = context.layout.groups(self.within, self.window)
        attended = self.attention(modulate(normalize(x), shift1, scale1), angles, groups)
        x = torch.addcmul(x, gate1, attended)
        if self.cross_attention is not None:
            asked = context.asked
            assert asked is not None
            x = x + self.cross_attention(normalize(x), asked.tokens, asked.mask, context.layout)
        seen = x if self.stem is None else self.stem(x, context)
        unmodulated, routing = normalize(seen), None
        y = modulate(unmodulated, shift2, scale2)
        if isinstance(self.feed_forward, MoE):
            y, routing = self.feed_forward(y, replace(context, unmodulated=unmodulated))
        else:
            y = self.feed_forward(y)
        return torch.addcmul(x, gate2, y), routing

    def modulations(self, c: Float[Tensor, "*t D"], layout: Layout) -> tuple[Float[Tensor, "R _ D"], ...]:
        """Shift, scale and gate of both branches."""
        if self.shifts:
            return self.modulation(c, layout)
        scale1, gate1, scale2, gate2 = self.modulation(c, layout)
        gate1, gate2 = (gate.clamp(-2, 2).tanh() for gate in (gate1, gate2))
        return torch.zeros_like(scale1), scale1, gate1, torch.zeros_like(scale2), scale2, gate2


class FinalLayer(nn.Module):
    """Modulated LayerNorm and the projection to each token's prediction."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.modulation = Modulation(hidden_size, 2)
        self.linear = nn.Linear(hidden_size, out_features)

    def forward(
        self, x: Float[Tensor, "R N D"], c: Float[Tensor, "*t D"], layout: Layout
    ) -> Float[Tensor, "R N Q"]:
        return self.linear(modulate(normalize(x), *self.modulation(c, layout)))
