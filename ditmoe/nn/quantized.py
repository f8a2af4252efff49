"""Weights in fewer bytes than they are computed in: bfloat16, or int8 with a scale for each output channel."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

FORMATS = {"bf16": 2, "int8": 1}
"""Bytes of a weight, by what they are called."""
LARGEST = 127
"""Of an int8 that has a negative: the scale is symmetric, without a zero point."""


def nbytes(shape: Sequence[int], form: str | None, width: int = 4) -> int:
    """Bytes that a weight of a shape (*E, out, in) takes as `Quantized`.

    Args:
        width: bytes of a number where `form` is None.
    """
    scales = 4 * math.prod(shape[:-1]) if form == "int8" else 0
    return math.prod(shape) * (width if form is None else FORMATS[form]) + scales


@dataclass(frozen=True)
class Quantized:
    """A matrix (out, in), or a stack of them (E, out, in), as it is stored; products take `to(dtype)`.

        int8:  W ~ scale q,   scale = max |W| / 127 over the inputs of an output channel,   q = round(W / scale)

    so that no weight is off by more than half a scale (weight-only quantisation; LLM.int8, arXiv 2208.07339, section 2,
    has it as symmetric absmax by rows). The arithmetic stays that of the inputs.

    Attributes:
        values: in bfloat16, int8, or as they were.
        scale: of each output channel, in float32; None where values are the weights.
    """

    values: Shaped[Tensor, "*E o i"]
    scale: Float[Tensor, "*E o 1"] | None = None

    @staticmethod
    @torch.no_grad()
    def of(weight: Float[Tensor, "*E o i"], form: str | None) -> "Quantized":
        """A weight in one of `FORMATS`; None leaves it as it is."""
        if form == "bf16":
            return Quantized(weight.to(torch.bfloat16))
        if form != "int8":
            return Quantized(weight)
        scale = weight.abs().amax(dim=-1, keepdim=True).float() / LARGEST
        steps = weight / scale.clamp_min(torch.finfo(torch.float32).tiny)
        return Quantized(steps.round().clamp(-LARGEST, LARGEST).to(torch.int8), scale)

    @property
    def shape(self) -> torch.Size:
        """Of the weight."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """That it takes."""
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def to(self, dtype: torch.dtype) -> Float[Tensor, "*E o i"]:
        """The weight, as products take it."""
        if self.scale is None:
            return self.values.to(dtype)
        return torch.mul(self.values, self.scale, out=self.values.new_empty(self.shape, dtype=dtype))

    def unbind(self) -> list["Quantized"]:
        """Those of a stack, one by one."""
        scales = [None] * len(self.values) if self.scale is None else self.scale.unbind()
        return [Quantized(values, scale) for values, scale in zip(self.values.unbind(), scales, strict=True)]

    def on(self, device: torch.device | str, copy: bool = False) -> "Quantized":
        """The same there; of memory that is pinned the host does not wait for it."""
        return self._each(lambda x: x.to(device, non_blocking=True, copy=copy))

    def pinned(self) -> "Quantized":
        """The same in memory that a GPU reads while the host goes on."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Quantized":
        return Quantized(change(self.values), None if self.scale is None else change(self.scale))


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is quantised: y = W x + b, in the type of x or that of autocast.

    Args:
        bias: of the layer that it stands for.
    """

    values: Tensor
    scale: Tensor | None

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias

    def set_weight(self, weight: Quantized) -> None:
        """Give it its weight, which moves with the module from then on."""
        self.register_buffer("values", weight.values, persistent=False)
        self.register_buffer("scale", weight.scale, persistent=False)

    @property
    def weight(self) -> Quantized:
        """The weight as it is stored."""
        return Quantized(self.values, self.scale)

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return F.linear(x, self.weight.to(dtype), self.bias)
