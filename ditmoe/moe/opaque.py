"""Custom operators that torch.compile treats as opaque, with shapes that it can infer.

The number of rows per expert depends on the data, so that they cannot be traced. In a separate file, imported when
needed, since registering an operator takes time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ditmoe.moe import experts, slices

# --- grouped matrix products on a GPU in float32 and float16


@torch.library.custom_op("ditmoe::grouped_mm", mutates_args=())
def grouped_mm(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Multiply (A, n) rows, of which those of expert e end at `ends[e]`, by (E, n, m)."""
    return F.grouped_mm(x, matrices, offs=ends)


@grouped_mm.register_fake
def _(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(len(x), matrices.shape[2])


@torch.library.custom_op("ditmoe::grouped_outer", mutates_args=())
def grouped_outer(x: Tensor, dy: Tensor, ends: Tensor) -> Tensor:
    """The gradient of the matrices: x^T dy over the rows of each expert, (E, n, m)."""
    return F.grouped_mm(x.T, dy, offs=ends)


@grouped_outer.register_fake
def _(x: Tensor, dy: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(len(ends), x.shape[1], dy.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _pull(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    x, matrices, ends = ctx.saved_tensors
    dy = dy.contiguous()
    return grouped_mm(dy, matrices.transpose(1, 2), ends), grouped_outer(x, dy, ends), None


grouped_mm.register_autograd(_pull, setup_context=_keep)

# --- the experts on a CPU, one after the other


@torch.library.custom_op("ditmoe::sliced_experts", mutates_args=())
def sliced_experts(
    x: Tensor,
    weight: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    counts: Tensor,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """`slices.through_slices`, with the counts as a tensor."""
    return slices.through_slices(x, weight, up, down, up_bias, down_bias, counts.tolist(), activation)


@sliced_experts.register_fake
def _(x: Tensor, weight: Tensor, up: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(len(x) + slices.spare(x), up.shape[1])


@torch.library.custom_op("ditmoe::sliced_experts_backward", mutates_args=())
def sliced_experts_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    h: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    counts: Tensor,
    activation: str,
) -> list[Tensor]:
    """`slices.back_through_slices`, without gradients of missing biases."""
    weights = up, down, up_bias, down_bias
    found = slices.back_through_slices(dy, x, weight, h, weights, counts.tolist(), activation)
    return [gradient for gradient in found if gradient is not None]


@sliced_experts_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, h: Tensor, *others: Any) -> list[Tensor]:
    weights = [w for w in others[:4] if w is not None]
    return [torch.empty_like(x), torch.empty_like(weight), *(torch.empty_like(w) for w in weights)]


def _keep_slices(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.activation = inputs
    ctx.biased = tensors[4] is not None
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _pull_slices(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    x, weight, up, down, up_bias, down_bias, counts, h = ctx.saved_tensors
    saved = x, weight, h, up, down, up_bias, down_bias
    found = sliced_experts_backward(dy.contiguous(), *saved, counts, ctx.activation)
    biases = found[4:] if ctx.biased else (None, None)
    return *found[:4], *biases, None, None


sliced_experts.register_autograd(_pull_slices, setup_context=_keep_slices)


def on_cpu(module: experts.Experts, x: Tensor, rows: experts.Rows) -> Tensor:
    """`experts.on_cpu` for compiled code."""
    weights = module.local_weights()
    return sliced_experts(x, rows.weight.to(x.dtype), *weights, rows.counts, module.activation)[0]
