"""The routed experts on a CPU, applied one after the other to slices of the sorted rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ditmoe.moe.expert_memory import Matrices
from ditmoe.nn.layers import activate

ROUND = 16
"""Slices in bfloat16 have a multiple of this many rows."""
SMALL = 2**23
"""Multiply-adds of an expert's first product below which bfloat16 gains nothing."""
GROUP = 2**18
"""Values per call of an activation: enough to be worth a call, few enough for the cache."""


class SlicedExperts(torch.autograd.Function):
    """The experts on a CPU, in small groups whose data stay in the cache from product to product.

    Weights are cast expert by expert, and gradients written in place into the stacked ones. Only x and the inputs of
    the activation are saved for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "A D"],
        weight: Float[Tensor, " A"],
        up: Float[Tensor, "E up D"],
        down: Float[Tensor, "E D inner"],
        up_bias: Float[Tensor, "E up"] | None,
        down_bias: Float[Tensor, "E D"] | None,
        counts: Sequence[int],
        activation: str,
    ) -> Float[Tensor, "A D"]:
        y, h = through_slices(x, weight, up, down, up_bias, down_bias, counts, activation)
        ctx.save_for_backward(x, weight, h, up, down, up_bias, down_bias)
        ctx.counts, ctx.activation = counts, activation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Float[Tensor, "A D"]) -> tuple[Any, ...]:
        x, weight, h, *weights = ctx.saved_tensors
        found = back_through_slices(dy, x, weight, h, weights, ctx.counts, ctx.activation)
        return *found, None, None


def through_slices(
    x: Float[Tensor, "A D"],
    weight: Float[Tensor, " A"],
    up: Matrices,
    down: Matrices,
    up_bias: Float[Tensor, "E up"] | None,
    down_bias: Float[Tensor, "E D"] | None,
    counts: Sequence[int],
    activation: str,
    at_once: int | None = None,
) -> tuple[Float[Tensor, "A D"], Float[Tensor, "room up"]]:
    """Return the results, and the inputs of the activation.

    Args:
        up, down: tensors, or iterables over the experts' matrices, such as quantised or offloaded ones.
        at_once: most experts whose matrices are used at a time; None: as many as is fastest.
    """
    weight, room, ups, downs = weight[:, None], len(x) + spare(x), up.unbind(), down.unbind()
    h, y = x.new_empty(room, up.shape[1]), x.new_empty(room, x.shape[1])
    for group in groups(counts, h, at_once):
        for e, here, _ in group.slices:
            torch.mm(rows(x, here), ups[e].to(x.dtype).T, out=h[here])
            if up_bias is not None:
                h[here].add_(up_bias[e])
        inner = activate(h[group.all], activation)
        for e, here, _ in group.slices:
            torch.mm(inner[group.within(here)], downs[e].to(x.dtype).T, out=y[here])
            if down_bias is not None:
                y[here].add_(down_bias[e])
        y[group.all].mul_(rows(weight, group.all))
    return y[: len(x)], h


def back_through_slices(
    dy: Float[Tensor, "A D"],
    x: Float[Tensor, "A D"],
    weight: Float[Tensor, " A"],
    h: Float[Tensor, "room up"],
    weights: Sequence[Any],
    counts: Sequence[int],
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients of x, weight, and the experts' weights: up, down and the biases."""
    weight, (up, down, up_bias, down_bias) = weight[:, None], weights
    dx, dweight = x.new_empty(len(h), x.shape[1]), x.new_empty(len(h), 1)
    empty = torch.zeros_like if 0 in counts else torch.empty_like
    dup, ddown = empty(up), empty(down)
    dup_bias, ddown_bias = (None if b is None else empty(b) for b in (up_bias, down_bias))
    ups, downs = up.unbind(), down.unbind()
    for group in groups(counts, h):
        inner, pull = activate_with_gradient(h[group.all], activation)
        dinner, w = torch.empty_like(inner), rows(weight, group.all)
        for e, here, _ in group.slices:
            torch.mm(rows(dy, here), downs[e].to(x.dtype), out=dinner[group.within(here)])
        torch.sum(dinner * inner, dim=-1, keepdim=True, out=dweight[group.all])
        dh, weighted = pull(dinner.mul_(w)), rows(dy, group.all) * w
        for e, here, count in group.slices:
            within, exact = group.within(here), slice(here.start, here.start + count)
            x_e, dy_e = rows(x, here, count), rows(weighted, within, count)
            mm_out(dup[e], dh[within].T, x_e)
            mm_out(ddown[e], dy_e.T, inner[within])
            torch.mm(dh[within], ups[e].to(x.dtype), out=dx[here])
            if dup_bias is not None and ddown_bias is not None and down_bias is not None:
                dup_bias[e], ddown_bias[e] = dh[within][:count].sum(dim=0), dy_e.sum(dim=0)
                dweight[exact].add_(dy[exact] @ down_bias[e, :, None].to(x.dtype))
    return dx[: len(x)], dweight[: len(x), 0], dup, ddown, dup_bias, ddown_bias


@dataclass(frozen=True)
class Group:
    """Consecutive experts: each one's index, slice of the rows, and how many of these are its own."""

    slices: list[tuple[int, slice, int]]

    @property
    def all(self) -> slice:
        return slice(self.slices[0][1].start, self.slices[-1][1].stop)

    def within(self, here: slice) -> slice:
        """A slice relative to the group's first row."""
        return slice(here.start - self.slices[0][1].start, here.stop - self.slices[0][1].start)


def groups(counts: Sequence[int], h: Float[Tensor, "A up"], at_once: int | None = None) -> Iterator[Group]:
    """The experts that have rows, in groups that fit in the cache.

    In bfloat16 slices extend into the next expert's rows, up to a multiple of 16: oneDNN builds a kernel for every
    new number of rows, which costs as much as a small product. Writing to such a slice corrupts the next expert's rows,
    which that expert then overwrites.
    """
    start, group = 0, []
    for e, count in enumerate(counts):
        if count:
            length = -(-count // ROUND) * ROUND if spare(h) else count
            group.append((e, slice(start, start + length), count))
            start += count
        full = group and ((start - group[0][1].start) * h.shape[1] >= GROUP or len(group) == at_once)
        if full or (group and e == len(counts) - 1):
            yield Group(group)
            group = []


def spare(x: Tensor) -> int:
    """Rows by which the last slice may exceed the last row."""
    return ROUND - 1 if x.dtype == torch.bfloat16 else 0


def rows(x: Tensor, here: slice, count: int | None = None) -> Tensor:
    """A slice, or its first `count` rows, with zeros for missing rows."""
    length = here.stop - here.start
    part = x[here] if count is None else x[here.start : here.start + count]
    return part if len(part) == length else F.pad(part, (0, 0, 0, length - len(part)))


def mm_out(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out = a b, whatever the precision of either side."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def activate_with_gradient(x: Float[Tensor, "A up"], activation: str) -> tuple[Float[Tensor, "A inner"], Any]:
    """`activate`, and the function that maps the gradient of its result to that of x."""
    if activation != "swiglu":
        tanh = "tanh" if activation == "gelu_tanh" else "none"
        return activate(x, activation), lambda dy: torch.ops.aten.gelu_backward(dy, x, approximate=tanh)
    gate, up = x.chunk(2, dim=-1)
    silu = F.silu(gate)

    def pull(dy: Tensor) -> Tensor:
        dx = torch.empty_like(x)
        dgate, dup = dx.chunk(2, dim=-1)
        torch.mul(dy, silu, out=dup)
        torch.ops.aten.silu_backward.grad_input(dy.mul_(up), gate, grad_input=dgate)
        return dx

    return silu * up, pull
