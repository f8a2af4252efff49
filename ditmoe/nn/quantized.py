"""Weight-only quantisation: bfloat16, or int8 with a scale per output channel."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

FORMATS = {"bf16": 2, "int8": 1}
"""Bytes per weight, by format."""
LARGEST = 127
"""The largest int8 whose negative is one too: the scale is symmetric, without a zero point."""


def nbytes(shape: Sequence[int], form: str | None, width: int = 4) -> int:
    """Bytes of a weight of shape (*E, out, in) as `Quantized`.

    Args:
        width: bytes per value if `form` is None.
    """
    scales = 4 * math.prod(shape[:-1]) if form == "int8" else 0
    return math.prod(shape) * (width if form is None else FORMATS[form]) + scales


@dataclass(frozen=True)
class Quantized:
    """A stored matrix (out, in), or a stack of them (E, out, in); products use `to(dtype)`.

        int8:  W ~ scale q,   scale = max |W| / 127 over the inputs of an output channel,   q = round(W / scale)

    so that the error of a weight is at most half a scale (weight-only quantisation; row-wise symmetric absmax in
    LLM.int8, arXiv 2208.07339, section 2). Arithmetic is in the dtype of the inputs.

    Attributes:
        values: in bfloat16, int8, or the original dtype.
        scale: per output channel, in float32; None if values are the weights.
    """

    values: Shaped[Tensor, "*E o i"]
    scale: Float[Tensor, "*E o 1"] | None = None

    @staticmethod
    @torch.no_grad()
    def of(weight: Float[Tensor, "*E o i"], form: str | None) -> "Quantized":
        """Convert a weight to one of `FORMATS`; None keeps its dtype."""
        if form == "bf16":
            return Quantized(weight.to(torch.bfloat16))
        if form != "int8":
            return Quantized(weight)
        scale = weight.abs().amax(dim=-1, keepdim=True).float() / LARGEST
        steps = weight / scale.clamp_min(torch.finfo(torch.float32).tiny)
        return Quantized(steps.round().clamp(-LARGEST, LARGEST).to(torch.int8), scale)

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def to(self, dtype: torch.dtype) -> Float[Tensor, "*E o i"]:
        """The dequantised weight, for products."""
        if self.scale is None:
            return self.values.to(dtype)
        return torch.mul(self.values, self.scale, out=self.values.new_empty(self.shape, dtype=dtype))

    def unbind(self) -> list["Quantized"]:
        """The matrices of a stack."""
        scales = [None] * len(self.values) if self.scale is None else self.scale.unbind()
        return [Quantized(values, scale) for values, scale in zip(self.values.unbind(), scales, strict=True)]

    def on(self, device: torch.device | str, copy: bool = False) -> "Quantized":
        """Copy to a device; asynchronous from pinned memory."""
        return self._each(lambda x: x.to(device, non_blocking=True, copy=copy))

    def pinned(self) -> "Quantized":
        """Copy to pinned memory, for asynchronous transfers to a GPU."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Quantized":
        return Quantized(change(self.values), None if self.scale is None else change(self.scale))


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is quantised: y = W x + b, in the dtype of x or of autocast.

    Args:
        bias: of the layer that it replaces.
    """

    values: Tensor
    scale: Tensor | None

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias

    def set_weight(self, weight: Quantized) -> None:
        """Set the weight, which moves with the module from then on."""
        self.register_buffer("values", weight.values, persistent=False)
        self.register_buffer("scale", weight.scale, persistent=False)

    @property
    def weight(self) -> Quantized:
        """The stored weight."""
        return Quantized(self.values, self.scale)

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return F.linear(x, self.weight.to(dtype), self.bias)
