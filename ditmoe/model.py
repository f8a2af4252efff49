"""The backbone: a diffusion transformer whose feed-forward layers are mixtures of experts.

DiT (arXiv 2212.09748) with the layers of DiT-MoE (arXiv 2407.11633). It maps a noisy sample to a prediction of
the same shape and never learns what the sample is: a modality's `Tokens` cut it up and put it together again.

    h = W patchify(x) + positions          c = timestep(t) + label(y)
    h = h + gate1 * Attention(modulate(h)),   h = h + gate2 * MoE(modulate(h))        [depth times]
    prediction = inverse(W' modulate(h))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ditmoe.layers import (
    Attention,
    FeedForward,
    LabelEmbedding,
    Modulation,
    TimestepEmbedding,
    modulate,
    normalize,
)
from ditmoe.modality import Tokens
from ditmoe.moe import Context, Experts, MoE, Place, Router, Routing


class Block(nn.Module):
    """adaLN-Zero block: both branches are modulated before and gated after by the conditioning."""

    def __init__(self, hidden_size: int, attention: Attention, feed_forward: FeedForward | MoE) -> None:
        super().__init__()
        self.modulation = Modulation(hidden_size, 6)
        self.attention = attention
        self.feed_forward = feed_forward

    def forward(
        self, x: Float[Tensor, "B N D"], context: Context
    ) -> tuple[Float[Tensor, "B N D"], Routing | None]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(context.c)
        x = torch.addcmul(x, gate1, self.attention(modulate(normalize(x), shift1, scale1)))
        plain, routing = normalize(x), None
        y = modulate(plain, shift2, scale2)
        if isinstance(self.feed_forward, MoE):
            y, routing = self.feed_forward(y, replace(context, plain=plain))
        else:
            y = self.feed_forward(y)
        return torch.addcmul(x, gate2, y), routing


class FinalLayer(nn.Module):
    """Modulated LayerNorm and the projection to what a token predicts."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.modulation = Modulation(hidden_size, 2)
        self.linear = nn.Linear(hidden_size, out_features)

    def forward(self, x: Float[Tensor, "B N D"], c: Float[Tensor, "B D"]) -> Float[Tensor, "B N Q"]:
        return self.linear(modulate(normalize(x), *self.modulation(c)))


class DiTMoE(nn.Module):
    """Diffusion transformer with a mixture of experts in the layers `sparse`.

    Args:
        tokens: how samples become tokens; owns no weights unless the modality needs a head of its own.
        num_classes: label `num_classes` is the null class of classifier-free guidance.
        hidden_size: D, a multiple of `num_heads`.
        router: makes the router of one layer from D; None is a dense DiT.
        sparse: indices of the layers with experts; None is every layer.
        activation: of routed and shared experts, "swiglu" or "gelu" or "gelu_tanh".
        expert_ratio: width of a routed expert over D.
        shared_ratio: width of all shared experts together over D (they are one feed-forward layer);
            0 is none. DiT-MoE publishes "2 shared experts" as 2.
        dense_ratio, dense_activation: the feed-forward layer of dense blocks, DiT's by default.
        qk_norm: LayerNorm per head on queries and keys.
        time_scale: factor on t before it is embedded; 0.001 for published weights that saw t in [0, 1].
    """

    def __init__(
        self,
        tokens: Tokens,
        num_classes: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        router: Callable[..., Router] | None = None,
        sparse: Sequence[int] | None = None,
        activation: str = "swiglu",
        expert_ratio: float = 4.0,
        shared_ratio: float = 2.0,
        dense_ratio: float = 4.0,
        dense_activation: str = "gelu_tanh",
        qk_norm: bool = False,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        sparse = range(depth) if sparse is None else sparse
        if unknown := [i for i in sparse if not 0 <= i < depth]:
            raise ValueError(f"sparse must name layers between 0 and {depth - 1}, got {unknown}")

        def feed_forward(layer: int) -> FeedForward | MoE:
            if router is None or layer not in sparse:
                return FeedForward(hidden_size, round(dense_ratio * hidden_size), dense_activation)
            route = router(hidden_size=hidden_size)
            route.settle(Place(sorted(sparse).index(layer), len(sparse), tokens.out_features, tokens.axes))
            inner, shared = (round(ratio * hidden_size) for ratio in (expert_ratio, shared_ratio))
            return MoE(route, hidden_size, inner, shared, activation)

        self.tokens = tokens
        self.num_classes = num_classes
        self.embed = nn.Linear(tokens.in_features, hidden_size)
        self.timestep = TimestepEmbedding(hidden_size, scale=time_scale)
        self.label = LabelEmbedding(num_classes, hidden_size)
        self.blocks = nn.ModuleList(
            Block(hidden_size, Attention(hidden_size, num_heads, qk_norm), feed_forward(layer))
            for layer in range(depth)
        )
        self.final = FinalLayer(hidden_size, tokens.out_features)
        self.initialize()

    def forward(
        self, x: Float[Tensor, "B *sample"], t: Float[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B *prediction"], list[Routing]]:
        """Predict from noisy samples.

        Args:
            x: noisy samples.
            t: time of each sample from data (0) to noise (1000).
            y: labels, `num_classes` for none.

        Returns:
            A prediction shaped like x (what it predicts is the process's business), and the routing of
            every sparse layer, from which the balance loss is computed.
        """
        h = self.embed(self.tokens.patchify(x)) + self.tokens.positions(x)
        time = self.timestep(t)
        c = time + self.label(y)
        context = Context(t, time, c, self.tokens.counts(x), h)
        routings = []
        for block in self.blocks:
            h, routing = block(h, context)
            if routing is not None:
                if routing.draft is not None:
                    routing = replace(routing, draft=self.tokens.inverse(routing.draft, x, t, c))
                routings.append(routing)
        return self.tokens.inverse(self.final(h, c), x, t, c), routings

    @property
    def routers(self) -> list[Router]:
        """The routers of the layers with experts, in the order of the routings."""
        return [b.feed_forward.router for b in self.blocks if isinstance(b.feed_forward, MoE)]

    def update_routers(self, passes: Sequence[Sequence[Mapping[str, Tensor]]]) -> None:
        """After an optimiser step: what each layer's routing observed, for each of its forward passes."""
        for router, observed in zip(self.routers, zip(*passes, strict=True), strict=True):
            router.update(observed)

    @torch.no_grad()
    def initialize(self) -> None:
        """All initialisation, as DiT does it: Xavier matrices, zero gates, so that every block is the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Experts | Router):
                module.initialize()
        for layer in (self.timestep.first, self.timestep.second, self.label.table):
            nn.init.normal_(layer.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)
        if not self.tokens.initialize():  # else the zero is in the head that follows
            nn.init.zeros_(self.final.linear.weight)
