"""CPU tensors with a shape but no memory, with which a model of any size runs in a moment.

This is torch's `FakeTensorMode` for plain models, without the seconds that loading `torch._dynamo` takes. It acts on
one thread; models in other threads are not affected.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ditmoe.cost import shape_rules

aten = torch.ops.aten


class Shape(Tensor):
    """A tensor that reports the device CPU; `meta` is its counterpart on "meta", whose shapes torch computes.

    `is_meta` is true, as for every tensor without values.
    """

    meta: Tensor
    is_meta = True  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, meta: Tensor) -> "Shape":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            meta.shape,
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=torch.device("cpu"),
        )
        made.meta = meta
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return on_shapes(function, args, kwargs or {})


class Mode(TorchDispatchMode):
    """Intercepts the operations of its thread. Nothing here is compiled, so `torch._dynamo` need not be disabled."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Shapes(Mode):
    """Within this context every new tensor of this thread is a `Shape`.

    Args:
        true: gives the number of true entries of a mask without values where it determines a shape.
    """

    def __init__(self, true: Callable[[], int]) -> None:
        super().__init__()
        self.true = true

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is aten.nonzero.default:
            size = min(self.true(), args[0].numel()), args[0].ndim
            return Shape(torch.empty(size, dtype=torch.int64, device="meta"))
        if function is aten.index.Tensor and args[1][0].dtype == torch.bool:
            size = min(self.true(), args[1][0].numel())
            args = args[0], [torch.empty(size, dtype=torch.int64, device="meta")]
        return on_shapes(function, args, kwargs or {})


def on_shapes(function: Any, args: Any, kwargs: Any) -> Any:
    """Call one of torch's operations on shapes; an in-place operation returns its target.

    Raises:
        ValueError: if the operation reads a value.
    """
    if function is aten._local_scalar_dense.default:
        raise ValueError(
            "a model must check x.is_meta before it reads a value, since it is counted by shapes only"
        )
    if function._schema.name.endswith("_") and torch.Tag.inplace_view not in function.tags:
        return args[0]  # in place, so its shape does not change
    if "out" in kwargs:
        return kwargs["out"]
    known: dict[int, Tensor] = {}
    args, kwargs = mapped(partial(_lowered, known), (list(args), kwargs))
    return mapped(partial(_raised, known), shape_rules.find(function)(*args, **kwargs))


def _lowered(known: dict[int, Tensor], value: Any) -> Any:
    """Convert to the device "meta", recording which tensor belongs to which `Shape`."""
    if isinstance(value, Shape):
        known[id(value.meta)] = value
        return value.meta
    if isinstance(value, Tensor):
        return value if value.device.type == "meta" else value.to("meta")
    return torch.device("meta") if isinstance(value, torch.device) else value


def _raised(known: dict[int, Tensor], value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return known[id(value)] if id(value) in known else Shape(value)


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to each value in nested arguments or results; faster than torch's more general `tree_map`."""
    if isinstance(value, dict):
        return {name: mapped(change, inner) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)([mapped(change, inner) for inner in value])
    return change(value)
