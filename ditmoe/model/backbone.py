"""The backbone: a diffusion transformer whose feed-forward layers are mixtures of experts.

DiT (arXiv 2212.09748) with the layers of DiT-MoE (arXiv 2407.11633). It maps a noisy sample to a prediction of the same
shape and is independent of the modality, whose `Tokens` patchify and unpatchify samples.

    h = W patchify(x) + positions          c = timestep(t) + conditioning(y) [+ step(y)]
    h = h + gate1 * Attention(modulate(h)),   h = h + gate2 * MoE(modulate(h))        [depth times]
    prediction = unpatchify(W' modulate(h))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.conditioning import ClassLabel, Conditioning
from ditmoe.modality import Tokens
from ditmoe.model.block import Block, FinalLayer
from ditmoe.model.cached_blocks import through_cached
from ditmoe.model.initialization import initialize
from ditmoe.model.mup import Widths
from ditmoe.model.step_embedding import StepEmbedding
from ditmoe.moe import Context, MoE, Place, Router, Routing
from ditmoe.nn import (
    Attention,
    CrossAttention,
    FeedForward,
    FirstBlockCache,
    Layout,
    TimestepEmbedding,
    rotary_angles,
)
from ditmoe.outside import check_number

MOST_LAYERS, LARGEST_RATIO = 10_000, 65_536
"""Upper bounds on the number of layers, and on the width of a feed-forward layer relative to D."""
ATTENTION = {"full": ("all",), "factorised": ("space", "time"), "window": ("window", "shifted")}
"""For each value of `attention`, what tokens attend to in successive blocks (`ditmoe.nn.attention_groups.WITHIN`)."""


class DiTMoE(nn.Module):
    """Diffusion transformer with a mixture of experts in the layers `moe_layers`.

    Args:
        tokens: patchifies samples; has weights only if the modality needs its own head.
        conditioning: makes the conditioning module, given D; or a number of classes, for `ClassLabel`.
        hidden_size: D, a multiple of `num_heads`.
        router: makes the router of one layer, given D; None: a dense DiT.
        moe_layers: indices of the layers with experts; None: all.
        activation: of routed and shared experts: "swiglu", "gelu" or "gelu_tanh".
        expert_ratio: width of a routed expert / D.
        shared_ratio: total width of the shared experts / D (they are one feed-forward layer); 0: none. The "2 shared
            experts" of DiT-MoE are 2.
        dense_ratio, dense_activation: of the feed-forward layer of blocks without experts; the defaults are DiT's.
        qk_norm: LayerNorm per head on queries and keys.
        attention: "full"; or "factorised", in which blocks attend alternately within a frame (a position along the
            first axis) and over time (Latte, arXiv 2401.03048); or "window", in which they attend alternately within
            windows of the token grid and within windows shifted by half their size (Swin, arXiv 2103.14030).
        window: tokens of a window along each axis.
        rope: rotary position embeddings from the tokens' coordinates, in place of an additive one.
        time_scale: factor on t before it is embedded; 0.001 for published weights trained with t in [0, 1].
        cross_layers: indices of the blocks with cross-attention, if the conditioning has tokens; None: all.
        modulation: of blocks: "full" is adaLN-Zero; "scale" has no shifts, and its gates are tanh(clamp(g, -2, 2))
            (Nucleus-Image, arXiv 2604.12163).
        expert_std: standard deviation of the routed experts' normal initialisation; None: Xavier.
        flow_map, guidance: which properties of a sampling step a model distilled for few steps embeds, see
            `StepEmbedding`.

    Attributes:
        step_embedding: embeds these properties; None in models that are not distilled.
        widths: the width multipliers of muP, relative to a model of a base width (`ditmoe.model.set_base`); None:
            standard parameterisation.
    """

    widths: Widths | None = None

    def __init__(
        self,
        tokens: Tokens,
        conditioning: int | Callable[..., Conditioning],
        hidden_size: int,
        depth: int,
        num_heads: int,
        router: Callable[..., Router] | None = None,
        moe_layers: Sequence[int] | None = None,
        activation: str = "swiglu",
        expert_ratio: float = 4.0,
        shared_ratio: float = 2.0,
        dense_ratio: float = 4.0,
        dense_activation: str = "gelu_tanh",
        qk_norm: bool = False,
        attention: str = "full",
        window: Sequence[int] | None = None,
        rope: bool = False,
        time_scale: float = 1.0,
        cross_layers: Sequence[int] | None = None,
        modulation: str = "full",
        expert_std: float | None = None,
        flow_map: int | None = None,
        guidance: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_number("hidden_size", hidden_size, 1, whole=True)
        check_number("depth", depth, 1, MOST_LAYERS, whole=True)
        moe_layers = sorted(check_layers("moe_layers", moe_layers, depth))
        cross_layers = check_layers("cross_layers", cross_layers, depth)
        # At least one unit after rounding.
        least = 0.5 / hidden_size if router and moe_layers else 0
        check_number("expert_ratio", expert_ratio, least, LARGEST_RATIO)
        check_number("shared_ratio", shared_ratio, 0, LARGEST_RATIO)
        check_number("dense_ratio", dense_ratio, 0, LARGEST_RATIO)
        if modulation not in ("full", "scale"):
            raise ValueError(f"modulation must be full or scale, got {modulation!r}")
        if expert_std is not None:
            check_number("expert_std", expert_std, above=0)
        check_attention(attention, window, tokens.axes)

        def feed_forward(layer: int) -> FeedForward | MoE:
            if router is None or layer not in moe_layers:
                return FeedForward(hidden_size, round(dense_ratio * hidden_size), dense_activation)
            place = Place(moe_layers.index(layer), len(moe_layers), tokens.out_features, tokens.axes)
            inner, shared = (round(ratio * hidden_size) for ratio in (expert_ratio, shared_ratio))
            return make_moe(router, place, hidden_size, inner, shared, activation, expert_std)

        def cross_attention(layer: int) -> CrossAttention | None:
            if layer not in cross_layers or not self.conditioning.gives_tokens:
                return None
            return CrossAttention(hidden_size, num_heads, qk_norm)

        self.tokens = tokens
        self.embed = nn.Linear(tokens.in_features, hidden_size)
        self.timestep = TimestepEmbedding(hidden_size, scale=time_scale)
        if isinstance(conditioning, int):
            conditioning = partial(ClassLabel, num_classes=conditioning)
        self.conditioning = conditioning(hidden_size=hidden_size)
        self.depth = depth
        self.rope, self.head_size = rope, hidden_size // max(1, num_heads)
        turns = ATTENTION[attention]
        self.blocks = nn.ModuleList(
            Block(
                hidden_size,
                Attention(hidden_size, num_heads, qk_norm),
                feed_forward(layer),
                turns[layer % len(turns)],
                window or (),
                cross_attention(layer),
                modulation,
            )
            for layer in range(depth)
        )
        self.final = FinalLayer(hidden_size, tokens.out_features)
        distilled = flow_map is not None or guidance is not None
        self.step_embedding = StepEmbedding(hidden_size, flow_map, guidance) if distilled else None
        initialize(self)

    def forward(
        self,
        x: Float[Tensor, "R *sample"],
        t: Float[Tensor, "*t"],
        y: Any,
        layout: Layout | None = None,
        cache: FirstBlockCache | None = None,
    ) -> tuple[Float[Tensor, "R *prediction"], list[Routing]]:
        """Predict from noisy samples.

        Args:
            x: noisy samples; or, with a layout, their tokens (1, T, P), as `Tokens.pack` gives them.
            t: timestep of each sample from data (0) to noise (1000), (B,); or of each frame or token, in a shape of
                `ditmoe.nn.layout`. Blocks, routers, experts and heads use each token's own. If routers read times as
                numbers (`reads_times`), it may be on the host while x is on a device.
            y: conditioning input: a `Condition` of B samples, or input of `conditioning.read`, such as class indices
                (B,), where the index num_classes is the null class.
            layout: of samples of different sizes.
            cache: of one sampling run. A sample for which the first block's output changes little reuses the remaining
                blocks' residual from an earlier step. No routings are returned then.

        Returns:
            A prediction shaped like x, whose meaning the process defines, and the routing of every layer with experts,
            including its losses.

        Raises:
            ValueError: for a cache with samples of different numbers of tokens.
        """
        if layout is not None:
            return self.predict(x, layout, t, y, cache)[:2]
        layout, y = self.tokens.layout(x), self.conditioning.read(y)
        given = {"given": y.given} if y.given else {}
        tokens, routings, t, c = self.predict(self.tokens.patchify(x, layout), layout, t, y, cache)
        for i, routing in enumerate(routings):
            if routing.aux_prediction is not None:
                aux_prediction = self.tokens.unpatchify(routing.aux_prediction, layout, x, t, c, **given)
                routings[i] = replace(routing, aux_prediction=aux_prediction)
        return self.tokens.unpatchify(tokens, layout, x, t, c, **given), routings

    def predict(
        self,
        tokens: Float[Tensor, "R N P"],
        layout: Layout,
        t: Float[Tensor, "*t"],
        y: Any,
        cache: FirstBlockCache | None = None,
    ) -> tuple[Float[Tensor, "R N Q"], list[Routing], Float[Tensor, "*t"], Float[Tensor, "*t D"]]:
        """Return each token's prediction, the routings, the times and the conditioning vectors c."""
        h, routings, context = self.encode(tokens, layout, t, y, cache)
        return self.final(h, context.c, layout), routings, context.t, context.c

    def encode(
        self,
        tokens: Float[Tensor, "R N P"],
        layout: Layout,
        t: Float[Tensor, "*t"],
        y: Any,
        cache: FirstBlockCache | None = None,
    ) -> tuple[Float[Tensor, "R N D"], list[Routing], Context]:
        """Return the tokens after `depth` blocks, the routings, and the context of all blocks."""
        condition = self.conditioning.read(y)
        h = self.embed(tokens)
        if condition.given and (given := self.tokens.embed_given(condition.given, layout)) is not None:
            h = h + given
        h, angles = self.place(h, layout)
        layout.cells_per_time(t.shape)  # raises if the shape of t is invalid
        on_host = None
        if t.device != tokens.device:
            on_host, t = t.numpy(), t.to(tokens.device, non_blocking=True)
        time = self.timestep(t.flatten()).unflatten(0, t.shape)
        asked = self.conditioning(condition)
        c = time + layout.beside_times(asked.vector, t.shape)
        if self.step_embedding is not None:
            c = c + self.step_embedding(condition.step, t, layout)
        context = Context(t, time, c, layout, h, asked, on_host)
        routings: list[Routing] = []
        if cache is not None:
            return through_cached(self.blocks[: self.depth], h, context, angles, cache), routings, context
        for block in islice(self.blocks, self.depth):
            h, routing = block(h, context, c, angles)
            if routing is not None:
                routings.append(routing)
        return h, routings, context

    def place(
        self, h: Float[Tensor, "R N D"], layout: Layout
    ) -> tuple[Float[Tensor, "R N D"], Float[Tensor, "N half"] | None]:
        """Add the position embedding to the tokens; with rotary positions, return the angles instead."""
        if self.rope:
            return h, rotary_angles(self.tokens.coordinates(layout), self.head_size)
        return h + self.tokens.positions(layout).to(self.embed.weight.dtype), None

    @property
    def mixtures(self) -> list[MoE]:
        """The layers with experts, in the order of the routings that `forward` returns."""
        return [b.feed_forward for b in self.blocks if isinstance(b.feed_forward, MoE)]

    @property
    def reads_times(self) -> bool:
        """Whether a router reads times as numbers, so that they are best passed on the host."""
        return self.step_embedding is None and any(router.reads_times for router in self.routers)

    @property
    def routers(self) -> list[Router]:
        """The routers of `mixtures`."""
        return [mixture.router for mixture in self.mixtures]

    def before_pass(self, earlier: Sequence[Sequence[Mapping[str, Tensor]]]) -> None:
        """Pass each router its statistics of the step's earlier passes, before each pass of an accumulated step."""
        for layer, router in enumerate(self.routers):
            router.before_pass([batch_stats[layer] for batch_stats in earlier])

    def update_routers(self, passes: Sequence[Sequence[Mapping[str, Tensor]]]) -> None:
        """Pass each router its statistics of all passes (`Routing.batch_stats`), after each optimiser step."""
        for router, batch_stats in zip(self.routers, zip(*passes, strict=True), strict=True):
            router.update(batch_stats)


def make_moe(
    router: Callable[..., Router],
    place: Place,
    hidden_size: int,
    inner: int,
    shared: int,
    activation: str,
    expert_std: float | None,
) -> MoE:
    """Make the layer with experts for a place in the model."""
    route = router(hidden_size=hidden_size)
    route.bind(place)  # before its experts are made: may depend on the place
    moe = MoE(route, hidden_size, inner, shared, activation)
    moe.experts.std = expert_std
    return moe


def check_attention(attention: str, window: Sequence[int] | None, axes: int) -> None:
    """Raises ValueError unless `attention` is one of ATTENTION, and windows have a size along each axis."""
    if attention not in ATTENTION:
        raise ValueError(f"attention must be one of {', '.join(ATTENTION)}, got {attention!r}")
    if attention == "window" and (window is None or len(window) != axes or min(window) < 1):
        raise ValueError(f"window must have {axes} sizes of at least 1 token, got {window}")


def check_layers(name: str, layers: Sequence[int] | None, depth: int) -> Sequence[int]:
    """Validate layer indices; None means all layers.

    Raises:
        ValueError: unless they are a list of indices below `depth`.
    """
    layers = range(depth) if layers is None else layers
    if not isinstance(layers, Sequence) or not all(isinstance(i, int) for i in layers):
        raise ValueError(f"{name} must be a list of layers, got {layers!r}")
    if unknown := [i for i in layers if not 0 <= i < depth]:
        raise ValueError(f"{name} must name layers between 0 and {depth - 1}, got {unknown}")
    return layers
