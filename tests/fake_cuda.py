"""A GPU where there is none: tensors on `cuda` have shapes and types, and no values; the host's are real.

An operation on devices that do not meet, or on a type that no kernel takes, is an error, as on a GPU. What the host
would wait for is noted, and it then gets zeros: nobody has the values.
"""

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_leaves

CUDA = torch.device("cuda")
ROOT = Path(__file__).resolve().parents[1]
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
WAITING = (DataDependentOutputException, DynamicOutputShapeException)


@dataclass
class Waits:
    """What the host waited for: the place in this project that asked for it, and the operation."""

    found: set[str] = field(default_factory=set)

    def note(self, what: str) -> None:
        own = [
            f
            for f in traceback.extract_stack()
            if f.filename.startswith(str(ROOT)) and "/tests/" not in f.filename
        ]
        where = f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].name}" if own else "elsewhere"
        self.found.add(f"{where} {what}")


class FakeCuda(TorchDispatchMode):
    """Sends what touches the GPU to fake tensors, and notes copies between it and the host that are waited for."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits, self.fake = waits, FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        there = device is not None and torch.device(device).type == "cuda"
        if not there and not tree_any(lambda x: isinstance(x, FakeTensor), (args, kwargs)):
            return function(*args, **kwargs)
        try:
            with self.fake:
                out = function(*args, **kwargs)
        except WAITING as error:
            self.waits.note(f"reads {error.func}")
            if function is torch.ops.aten._local_scalar_dense.default:
                return torch.ones((), dtype=args[0].dtype).item()
            if function is torch.ops.aten.nonzero.default:
                with self.fake:
                    return torch.empty(args[0].numel(), args[0].ndim, dtype=torch.long, device=CUDA)
            raise
        if function in COPIES:
            source = args[1] if function is COPIES[1] else args[0]
            position = 2 if function is COPIES[1] else len(args)
            waits = not (args[position] if len(args) > position else kwargs.get("non_blocking", False))
            if source.device.type == "cuda" and out.device.type == "cpu":
                self.waits.note("to the host")
                return torch.zeros(out.shape, dtype=out.dtype) if function is COPIES[0] else out
            elif source.device.type == "cpu" and out.device.type == "cuda" and waits and source.ndim:
                self.waits.note("from the host")
        return out


@contextmanager
def fake_cuda(waits: Waits) -> Iterator[None]:
    """Within it there is a GPU. `backward` gives each parameter a gradient without computing it: that needs kernels."""

    def backward(loss: Tensor, *_: Any, **options: Any) -> None:
        assert loss.requires_grad
        for parameter in LEARNING:
            parameter.grad = torch.empty_like(parameter)

    with ExitStack() as stack:
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor` on a device is seen
        stack.enter_context(patch("torch.cuda._lazy_init", lambda: None))
        stack.enter_context(patch.object(Tensor, "pin_memory", lambda x: x))  # a driver does that
        stack.enter_context(patch.object(Tensor, "backward", backward))
        never = "torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available"
        stack.enter_context(patch(never, lambda: False))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda *_: True))
        stack.enter_context(patch("torch.cuda.get_device_capability", lambda *_: (9, 0)))
        stack.enter_context(FakeCuda(waits))
        yield


LEARNING: list[nn.Parameter] = []


def there(module: nn.Module) -> nn.Module:
    """A module whose parameters and buffers are on the fake GPU, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = torch.empty(parameter.shape, dtype=parameter.dtype, device=CUDA)
                part._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)
    LEARNING[:] = [p for p in module.parameters() if p.requires_grad]
    return module


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a value."""
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]
