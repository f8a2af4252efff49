"""Shape functions of the operations in our models, in place of torch's.

Torch has them all, but its functions in Python load SymPy and `torch._dynamo` at first use, which takes a second, as
long as `import torch`. Operations without a rule here use torch's. Arguments are those of the operation; tensors are on
the device "meta".
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def find(function: Any) -> Callable[..., Any]:
    """The shape function of an operation: a rule from here, or torch's."""
    if rule := RULES.get(function):
        return rule
    return partial(pointwise, function) if torch.Tag.pointwise in function.tags else function


def new(x: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or x.dtype, device="meta")


def like(x: Tensor, *_: Any, dtype: Any = None, memory_format: Any = None, **others: Any) -> Tensor:
    """A tensor of the shape of x, with its memory order if x is dense and no other order is requested."""
    strides = x.stride()
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    if memory_format == torch.contiguous_format or 0 in strides or order == list(range(x.ndim)):
        return new(x, x.shape, dtype)
    back = [order.index(axis) for axis in range(x.ndim)]
    return new(x, [x.shape[axis] for axis in order], dtype).permute(back)


def pointwise(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The shape is the broadcast shape of the operands; the dtype is that of the operation on empty tensors."""
    dtype = function(*map(_nothing, args), **{name: _nothing(value) for name, value in kwargs.items()}).dtype
    operands = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    shape = broadcast(*(x.shape for x in operands))
    return like(next((x for x in operands if list(x.shape) == shape), new(operands[0], shape)), dtype=dtype)


def _nothing(value: Any) -> Any:
    return value.new_empty((0,) * value.ndim, device="cpu") if isinstance(value, Tensor) else value


def broadcast(*shapes: Sequence[int]) -> list[int]:
    """The broadcast shape, like `torch.broadcast_shapes`, which would call the rules above."""
    sizes = [set(ns) - {1} for ns in zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1)][::-1]
    if any(len(size) > 1 for size in sizes):
        raise ValueError(f"operands must broadcast, got {[list(shape) for shape in shapes]}")
    return [min(size, default=1) for size in sizes]


def product(a: Tensor, b: Tensor) -> Tensor:
    """Product of matrices, or of equal batches of matrices."""
    if a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"matrices must fit, got {list(a.shape)} and {list(b.shape)}")
    return new(a, (*a.shape[:-1], b.shape[-1]))


def reduced(x: Tensor, axes: Sequence[int] | None, keep: bool, dtype: torch.dtype | None = None) -> Tensor:
    gone = {axis % x.ndim for axis in axes or range(x.ndim)}
    shape = [1 if axis in gone else n for axis, n in enumerate(x.shape) if keep or axis not in gone]
    return new(x, shape, dtype)


def summed(x: Tensor, axes: Sequence[int] | None, keep: bool = False, *, dtype: Any = None) -> Tensor:
    return reduced(x, axes, keep, dtype or whole(x))


def whole(x: Tensor) -> torch.dtype:
    """The dtype of a sum: for integers the largest."""
    return x.dtype if x.is_floating_point() else torch.int64


def norm(
    x: Tensor, order: Any = 2, axes: Sequence[int] | None = None, keep: bool = False, **_: Any
) -> Tensor:
    return reduced(x, axes, keep)


def layer_norm(x: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean = (*x.shape[: x.ndim - len(shape)], *[1] * len(shape))
    return new(x, x.shape), new(x, mean), new(x, mean)


def index(x: Tensor, places: Sequence[Tensor | None]) -> Tensor:
    given = [axis for axis, place in enumerate(places) if place is not None]
    first, last = given[0], given[-1] + 1
    if given != list(range(first, last)):
        return aten.index.Tensor(x, places)
    between = broadcast(*(place.shape for place in places[first:last] if place is not None))
    return new(x, (*x.shape[:first], *between, *x.shape[last:]))


def gather(x: Tensor, axis: int, places: Tensor, **_: Any) -> Tensor:
    return new(x, places.shape)


def topk(x: Tensor, k: int, axis: int = -1, *_: Any, **others: Any) -> tuple[Tensor, Tensor]:
    shape = list(x.shape)
    shape[axis] = k
    return new(x, shape), new(x, shape, torch.int64)


def ordered(x: Tensor, *_: Any, **others: Any) -> tuple[Tensor, Tensor]:
    return like(x), like(x, dtype=torch.int64)


def joined(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    shape = list(parts[0].shape)
    if any(x.ndim != len(shape) or x.dtype != parts[0].dtype for x in parts):
        return aten.cat.default(parts, axis)
    shape[axis] = sum(x.shape[axis] for x in parts)
    return new(parts[0], shape)


def stacked(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    return joined([x.unsqueeze(axis) for x in parts], axis)


def counted(*ends: float, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Shape of `arange`: from a start (0) to an end, with a step (1)."""
    start, end, step = (0, *ends, 1) if len(ends) == 1 else (*ends, 1)[:3]
    dtype = dtype or (torch.int64 if all(isinstance(n, int) for n in ends) else torch.get_default_dtype())
    return torch.empty(math.ceil((end - start) / step), dtype=dtype, device="meta")


def cross_entropy(
    x: Tensor, target: Tensor, weight: Any = None, positive: Any = None, mean: int = 1
) -> Tensor:
    return new(x, () if mean else x.shape)


def convolved(
    x: Tensor, weight: Tensor, bias: Any, stride: Any, pad: Any, dilation: Any, *others: Any
) -> Tensor:
    if others[0]:  # transposed
        return aten.convolution.default(x, weight, bias, stride, pad, dilation, *others)
    sides = zip(x.shape[2:], weight.shape[2:], stride, pad, dilation, strict=True)
    return new(x, (len(x), len(weight), *[(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides]))


def bags(table: Tensor, places: Tensor, starts: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Sums of rows of a table; `others` ends with whether the last start is an end, and the padding index."""
    number = len(starts) - bool(others[4:5] and others[4])
    return new(table, (number, table.shape[1])), new(places, [0]), new(places, starts.shape), new(places, [0])


RULES: dict[Any, Callable[..., Any]] = {
    aten.mm.default: product,
    aten.bmm.default: product,
    aten.addmm.default: lambda bias, a, b, **_: product(a, b),
    aten.convolution.default: convolved,
    aten.binary_cross_entropy_with_logits.default: cross_entropy,
    aten.floor_divide.default: partial(pointwise, aten.floor_divide.default),
    aten.searchsorted.Tensor: lambda bounds, x, **_: new(x, x.shape, torch.int64),
    aten.sum.dim_IntList: summed,
    aten.mean.dim: summed,
    aten.logsumexp.default: lambda x, axes, keep=False: reduced(x, axes, keep),
    aten.linalg_vector_norm.default: norm,
    aten.native_layer_norm.default: layer_norm,
    aten._softmax.default: lambda x, *_: new(x, x.shape),
    aten.cumsum.default: lambda x, axis, dtype=None: like(x, dtype=dtype or whole(x)),
    aten.index_add.default: lambda x, *_, **others: like(x),
    aten.clone.default: like,
    aten._to_copy.default: like,
    aten.linalg_cross.default: lambda x, y, **_: new(x, broadcast(x.shape, y.shape)),
    aten.flip.default: like,
    aten.roll.default: like,
    aten.ones_like.default: like,
    aten.zeros_like.default: like,
    aten.empty_like.default: like,
    aten.index.Tensor: index,
    aten.embedding.default: lambda table, places, *_: index(table, [places]),
    aten._embedding_bag.default: bags,
    aten._embedding_bag_forward_only.default: bags,
    aten.gather.default: gather,
    aten.topk.default: topk,
    aten.sort.default: ordered,
    aten.sort.stable: ordered,
    aten.cat.default: joined,
    aten.stack.default: stacked,
    aten.arange.default: counted,
    aten.arange.start: counted,
    aten.arange.start_step: counted,
}
