"""Parameters, multiply-adds and activations of a model, counted on the model itself without allocating it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ditmoe.model import DiTMoE
from ditmoe.moe import Experts, MoE, Router, Rows, TimestepExperts, TokenChoice
from ditmoe.moe.experts import SlicedExperts
from ditmoe.nn import Attention, Layout

FUSED: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, k, v
    )
}
"""What torch's own counter leaves out."""


@dataclass(frozen=True)
class Counts:
    """What one model is and does for one sample; all are numbers, none are bytes.

    Attributes:
        trainable: parameters.
        routed, shared: of them, those of the routed and of the shared experts.
        routed_active: of the routed ones, the share that a token uses, routed K / E.
        qk_norm: of them, scales and shifts of the LayerNorm on queries and keys.
        positions: the fixed position table, N D; computed, never stored.
        tokens: N.
        products: multiply-adds of QK^T and AV, 2 N^2 D per layer.
        multiply_adds: of all matrix products in a forward pass, QK^T and AV included.
        activations: numbers that autograd keeps for a backward pass, with an attention kernel that does not keep
            the N x N scores.
        depth: number of blocks.
        width: D.
        assignments: rows that the routed experts work on, of all layers.
        routers: parameters of the routers.
        outside: parameters outside the blocks.
    """

    trainable: int
    routed: int
    shared: int
    routed_active: int
    qk_norm: int
    positions: int
    tokens: int
    products: int
    multiply_adds: int
    activations: int
    depth: int
    width: int = 0
    assignments: int = 0
    routers: int = 0
    outside: int = 0

    @property
    def total(self) -> int:
        """Parameters as DiT-MoE's paper counts: with the position table, without the QK LayerNorm."""
        return self.trainable + self.positions - self.qk_norm

    @property
    def active(self) -> int:
        """total - routed (1 - K / E): whatever is not routed counts, label table and positions included."""
        return self.total - self.routed + self.routed_active


def count(make: Callable[[], DiTMoE], sample_shape: Sequence[int]) -> Counts:
    """Count a model by a forward pass of one sample over tensors that have a shape and no memory.

    Everything is the real model's, so that a modality's own head and any router count as they are; only the
    routed experts, whose shares are not known without data, run as one expert of all assignments: the same
    products, of the same total size. Where the number of assignments depends on data, it is taken to be
    what the router aims at, `Router.active` for each token; what has no products (a host's assignment, the
    choice among segments of noise) is left out.

    Args:
        make: makes the model.
        sample_shape: shape of one sample as the model sees it.
    """
    with FakeTensorMode(), torch.device("cpu"):
        model = make()
        model.training = False  # itself, not its routers: no token is dropped
        x, t, y = torch.empty(1, *sample_shape), torch.empty(1), torch.empty(1, dtype=torch.int64)
        layout = Layout.even(model.tokens.grid(x), 1, x.device)  # where only some cells are tokens, the most
        model.tokens.layout = lambda x: layout  # type: ignore[method-assign]
        tokens = sum(layout.lengths)
        rows: dict[Experts, int] = {}
        aim = _Aim(tokens)
        for module in model.modules():
            if isinstance(module, Experts):
                module.compute = partial(_as_one_expert, module, rows)  # type: ignore[method-assign]
            if isinstance(module, TokenChoice):
                module.choose = partial(TokenChoice.choose, module)  # type: ignore[method-assign]
            if isinstance(module, TimestepExperts) and module.routers:
                module.forward = module.routers[0].forward  # type: ignore[method-assign]
            if isinstance(module, Router):
                module.register_forward_pre_hook(aim.at)
        kept = _Kept(model, tokens)
        with FlopCounterMode(display=False, custom_mapping=FUSED) as counter, aim, kept.hooks():
            model(x, t, y)
    width = model.embed.out_features
    attentions = [m for m in model.modules() if isinstance(m, Attention)]
    mixtures = [m for m in model.modules() if isinstance(m, MoE)]
    return Counts(
        trainable=_size(model),
        routed=sum(_size(m.experts) for m in mixtures),
        shared=sum(_size(m.shared) for m in mixtures if m.shared is not None),
        routed_active=sum(round(_size(e) * n / (tokens * len(e.up))) for e, n in rows.items()),
        qk_norm=sum(_size(m.q_norm) + _size(m.k_norm) for m in attentions),
        positions=tokens * width,
        tokens=tokens,
        products=sum(2 * _pairs(layout, block) * width for block in model.blocks),
        multiply_adds=counter.get_total_flops() // 2,
        activations=kept.numbers,
        depth=len(model.blocks),
        width=width,
        assignments=sum(rows.values()),
        routers=sum(_size(m.router) for m in mixtures),
        outside=_size(model) - _size(model.blocks),
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _pairs(layout: Layout, block: Any) -> int:
    """Pairs of tokens that attend to each other."""
    groups = layout.groups(block.within, block.window)
    return sum(n * length**2 for n, length in groups.blocks) if groups else sum(layout.lengths) ** 2


def _as_one_expert(
    experts: Experts, rows: dict[Experts, int], x: Float[Tensor, "A D"], given: Rows
) -> Float[Tensor, "A D"]:
    """All assignments through the first expert; notes how many there were."""
    rows[experts] = len(x)
    matrices = [
        None if p is None else p[:1] for p in (experts.up, experts.down, experts.up_bias, experts.down_bias)
    ]
    return SlicedExperts.apply(x, given.weight.to(x.dtype), *matrices, [len(x)], experts.activation)


class _Aim(TorchDispatchMode):
    """Lets a mask without values have as many true entries as the router at work aims at."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.true = tokens, 0

    def at(self, router: Router, *_: Any) -> None:
        """Hook: this router is at work."""
        self.true = round(router.active * self.tokens)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.nonzero.default:
            return torch.zeros(min(self.true, args[0].numel()), args[0].ndim, dtype=torch.int64)
        if function is torch.ops.aten.index.Tensor and args[1][0].dtype == torch.bool:
            return function(args[0], [torch.zeros(min(self.true, args[1][0].numel()), dtype=torch.int64)])
        return function(*args, **(kwargs or {}))


class _Kept:
    """Adds up what autograd keeps, each storage once, parameters and attention scores aside."""

    def __init__(self, model: DiTMoE, tokens: int) -> None:
        self.seen = {p.untyped_storage()._cdata for p in model.parameters()}
        heads = {m.num_heads for m in model.modules() if isinstance(m, Attention)}
        self.scores = {(h, tokens, tokens) for h in heads}
        self.storages: list[
            torch.UntypedStorage
        ] = []  # kept, or a later one might get the number of a freed one
        self.numbers = 0

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._add, lambda tensor: tensor)

    def _add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen and tuple(tensor.shape[-3:]) not in self.scores:
            self.seen.add(storage._cdata)
            self.storages.append(storage)
            self.numbers += storage.nbytes() // tensor.element_size() if tensor.is_floating_point() else 0
        return tensor
