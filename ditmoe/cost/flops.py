"""Parameters, multiply-adds and activations of a model, counted on the model itself without allocating it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ditmoe.conditioning import Condition
from ditmoe.cost.shapes import Mode, Shape, Shapes
from ditmoe.model import DiTMoE
from ditmoe.moe import Experts, Router, Rows
from ditmoe.nn import Attention, Layout

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""An operation missing from torch's own FLOP table."""


@dataclass(frozen=True)
class Counts:
    """Counts of a model for one sample; all in numbers, none in bytes.

    Attributes:
        trainable: parameters.
        routed, shared: of these, those of the routed and of the shared experts.
        routed_active: routed parameters used per token, routed K / E.
        qk_norm: of the trainable ones, scales and shifts of the LayerNorm on queries and keys.
        positions: the fixed position table, N D; computed, never stored.
        tokens: N.
        products: multiply-adds of QK^T and AV, 2 N^2 D per layer.
        multiply_adds: of all matrix products in a forward pass, QK^T and AV included.
        activations: numbers that autograd keeps for a backward pass, with an attention kernel that does not keep
            the N x N scores.
        depth: number of blocks.
        width: D.
        assignments: rows processed by the routed experts, over all layers.
        routers: parameters of the routers.
        outside: parameters outside the blocks.
        moe_layers: layers with routed experts.
        experts: routed experts of all these layers.
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
    moe_layers: int = 0
    experts: int = 0

    @property
    def total(self) -> int:
        """Parameters as counted in DiT-MoE's paper: with the position table, without the QK LayerNorm."""
        return self.trainable + self.positions - self.qk_norm

    @property
    def active(self) -> int:
        """total - routed (1 - K / E): everything not routed counts, label table and positions included."""
        return self.total - self.routed + self.routed_active


def count(make: Callable[[], DiTMoE], sample_shape: Sequence[int]) -> Counts:
    """Count a model by a forward pass of one sample over tensors with shapes but no memory.

    The pass runs the real model, so a modality's own head and any router are counted as they are. Classes handle data
    dependence themselves, where `x.is_meta`: experts, whose loads are unknown, run as a single expert on all rows,
    which has the same total of products; a router that works on the host returns as many assignments as it would.
    Elsewhere a mask has as many true entries as the active router aims at, `Router.active` for each token. Work without
    matrix products (an assignment on the host, the choice of a noise segment) is not counted.

    Only the model that `make` returns is modified, and only this thread is observed, so other models may train at the
    same time.

    Args:
        make: makes a new model.
        sample_shape: shape of one sample in the model's space.
    """
    aim = _Aim()
    with torch.inference_mode(False), torch.enable_grad(), Shapes(aim.true), torch.device("cpu"):
        model = make()
        model.training = False  # only the model, not its routers: no token is dropped
        x, t, y = torch.empty(1, *sample_shape), torch.empty(1), model.conditioning.nothing(1)
        layout = Layout.even(model.tokens.grid(x), 1, x.device)  # for sparse grids, the upper bound
        tokens = sum(layout.lengths)
        rows: dict[Experts, int] = {}
        kept, products = _Kept(model, tokens), _Products()
        with aim.watching(model, tokens), _counting_rows(model, rows), products, kept.hooks():
            predict(model, x, layout, t, y)
    width, mixtures = model.embed.out_features, model.mixtures
    attentions = [m for m in model.modules() if isinstance(m, Attention)]
    blocks: Iterable[Any] = model.blocks
    return Counts(
        trainable=_size(model),
        routed=sum(_size(m.experts) for m in mixtures),
        shared=sum(_size(m.shared) for m in mixtures if m.shared is not None),
        routed_active=sum(round(_size(e) * n / (tokens * len(e.up))) for e, n in rows.items()),
        qk_norm=sum(_size(m.q_norm) + _size(m.k_norm) for m in attentions),
        positions=tokens * width,
        tokens=tokens,
        products=sum(2 * layout.pairs(block.within, block.window) * width for block in blocks),
        multiply_adds=products.flops // 2,
        activations=kept.numbers,
        depth=len(model.blocks),
        width=width,
        assignments=sum(rows.values()),
        routers=sum(_size(m.router) for m in mixtures),
        outside=_size(model) - _size(model.blocks),
        moe_layers=len(mixtures),
        experts=sum(len(m.experts.up) for m in mixtures),
    )


def predict(model: DiTMoE, x: Tensor, layout: Layout, t: Tensor, y: Condition) -> None:
    """Run a model's forward pass with a given layout, since a data-dependent layout has no static shape."""
    tokens, routings, time, c = model.predict(model.tokens.patchify(x, layout), layout, t, y)
    for prediction in (*(r.aux_prediction for r in routings), tokens):
        if prediction is not None:
            model.tokens.unpatchify(prediction, layout, x, time, c)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@contextmanager
def _counting_rows(model: DiTMoE, rows: dict[Experts, int]) -> Iterator[None]:
    """Record the number of rows given to the experts of each layer."""

    def note(experts: nn.Module, args: tuple[Rows, Any]) -> None:
        assert isinstance(experts, Experts)
        rows[experts] = len(args[0].x)

    hooks = [mixture.experts.register_forward_pre_hook(note) for mixture in model.mixtures]
    yield
    for hook in hooks:
        hook.remove()


class _Aim:
    """The number of assignments that the active router aims at."""

    number = 0

    def true(self) -> int:
        return self.number

    @contextmanager
    def watching(self, model: DiTMoE, tokens: int) -> Iterator[None]:
        """Track the active router, including nested ones."""

        def at(router: nn.Module, _: Any) -> None:
            assert isinstance(router, Router)
            self.number = round(router.active * tokens)

        routers = [module for module in model.modules() if isinstance(module, Router)]
        hooks = [router.register_forward_pre_hook(at) for router in routers]
        yield
        for hook in hooks:
            hook.remove()


class _Products(Mode):
    """Sums the operations of all matrix products in this thread; torch's `FlopCounterMode` hooks every module."""

    flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function._overloadpacket is FUSED:
            self.flops += sdpa_flop_count(*(z.shape for z in args[:3]))
        elif formula := flop_registry.get(function._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


class _Kept:
    """Sums the tensors saved by autograd, each storage once, without parameters and attention scores."""

    def __init__(self, model: DiTMoE, tokens: int) -> None:
        self.seen = {_storage(p)._cdata for p in model.parameters()}
        heads = {m.num_heads for m in model.modules() if isinstance(m, Attention)}
        self.scores = {(h, tokens, tokens) for h in heads}
        self.storages: list[Any] = []  # kept alive, so that ids are not reused
        self.numbers = 0

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._add, lambda tensor: tensor)

    def _add(self, tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage._cdata not in self.seen and tuple(tensor.shape[-3:]) not in self.scores:
            self.seen.add(storage._cdata)
            self.storages.append(storage)
            self.numbers += storage.nbytes() // tensor.element_size() if tensor.is_floating_point() else 0
        return tensor


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    """The storage shared by views of a tensor."""
    return (tensor.meta if isinstance(tensor, Shape) else tensor).untyped_storage()
