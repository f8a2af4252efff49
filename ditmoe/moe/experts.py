"""The routed experts: stacked weights, applied to rows sorted by expert."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ditmoe.distributed import local
from ditmoe.moe.expert_memory import OffloadedExperts, QuantizedExperts
from ditmoe.moe.slices import SMALL, SlicedExperts, through_slices
from ditmoe.nn import Layout
from ditmoe.nn.layers import activate, up_features


class Places(NamedTuple):
    """Index of rows that are single tokens.

    Attributes:
        token: each row's token index in the batch.
        row: row indices sorted by token.
        bounds: where in that order the rows of each token begin, and those of padding, if any; then their number.
    """

    token: Int[Tensor, " A"]
    row: Int[Tensor, " A"]
    bounds: Int[Tensor, " bounds"]


@dataclass(frozen=True)
class Rows:
    """Input of the experts: one row per assignment, sorted by expert.

    Attributes:
        x: inputs.
        weight: factor on each result.
        expert: of each row, ascending.
        counts: rows of each expert.
        sample: each row's sample in the batch; None for rows from other ranks.
        places: of the rows, if each is a token.
        layout: of these tokens.
        padded: whether padding rows may follow the counted ones: their inputs and outputs are zero.
    """

    x: Float[Tensor, "A D"]
    weight: Float[Tensor, " A"]
    expert: Int[Tensor, " A"]
    counts: Int[Tensor, " E"]
    sample: Int[Tensor, " A"] | None
    places: Places | None = None
    layout: Layout | None = None
    padded: bool = False

    @property
    def beyond(self) -> Bool[Tensor, "A 1"]:
        """Mask of the padding rows."""
        return (torch.arange(len(self.x), device=self.x.device) >= self.counts.sum())[:, None]

    def row_of(self, shape: Sequence[int]) -> Int[Tensor, " A"]:
        """Each row's index into the flattened times of this shape (see `ditmoe.nn.layout`).

        Raises:
            ValueError: for several times per sample if rows are mixtures of tokens or come from other ranks.
        """
        if len(shape) == 1 and self.sample is not None:
            return self.sample
        if self.places is None or self.layout is None:
            raise ValueError("experts that work on mixtures of tokens know no time per frame or token")
        return self.layout.row_of(self.places.token, shape)


class Experts(nn.Module):
    """E feed-forward layers of one shape, weights stacked along the first axis as (E, out, in).

    GELU experts have biases like DiT's MLP, so that a dense layer can become an expert exactly.

    Attributes:
        std: standard deviation of the initial values; None: Xavier.
        exchange: sends rows to the ranks that own their experts; None without expert parallelism.
        store: holds the matrices if `up` and `down` are None (`ditmoe.model.LowMemory`).
        spreadable: whether expert parallelism is supported: only rows travel between ranks, so the experts must need
            nothing else. Not inherited: each subclass has to declare it.
    """

    spreadable: ClassVar[bool] = True
    std: float | None = None
    exchange: Callable[..., Float[Tensor, "A D"]] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.spreadable = vars(cls).get("spreadable", False)

    def __init__(self, num_experts: int, hidden_size: int, inner: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.store: QuantizedExperts | OffloadedExperts | None = None
        up = up_features(inner, activation)
        self.up = nn.Parameter(torch.empty(num_experts, up, hidden_size))
        self.down = nn.Parameter(torch.empty(num_experts, hidden_size, inner))
        bias = activation != "swiglu"
        self.up_bias = nn.Parameter(torch.zeros(num_experts, up)) if bias else None
        self.down_bias = nn.Parameter(torch.zeros(num_experts, hidden_size)) if bias else None

    def forward(self, rows: Rows, c: Float[Tensor, "*t D"]) -> Float[Tensor, "A D"]:
        """Apply each row's expert and weight; `c` is the conditioning (see `Context`), not used here."""
        return self.compute(rows.x, rows)

    def compute(self, x: Float[Tensor, "A D"], rows: Rows) -> Float[Tensor, "A D"]:
        """Apply the experts to `x` in place of `rows.x`:  y = w (down f(up x + bias) + bias).

        The weight is applied between the two matrices, so that its gradient needs no expert output.
        """
        if self.exchange is not None:
            return self.exchange(self.own, x, rows)
        return self.own(x, rows)

    def own(self, x: Float[Tensor, "A D"], rows: Rows) -> Float[Tensor, "A D"]:
        """The same for experts that are all on this rank."""
        if not rows.padded:
            return self._each(x, rows)
        # Padding rows are uninitialised memory, which must reach neither the output nor the gradient.
        beyond = rows.beyond
        return self._each(x.masked_fill(beyond, 0.0), rows).masked_fill(beyond, 0.0)

    def _each(self, x: Float[Tensor, "A D"], rows: Rows) -> Float[Tensor, "A D"]:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            # On a CPU small products stay in float32: in bfloat16 they gain less than the casts cost.
            num, *size = (self.up if self.store is None else self.store.matrices()[0]).shape
            small = not x.is_cuda and len(x) * math.prod(size) < num * SMALL
            x = x.to(torch.float32 if small else torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            if x.is_meta:
                return on_meta(self, x, rows)
            if self.store is not None and not (x.is_cuda and isinstance(self.store, QuantizedExperts)):
                return from_store(self, self.store, x, rows)
            if x.is_cuda:
                return on_cuda(self, x, rows)
            if torch.compiler.is_compiling():
                from ditmoe.moe import opaque

                return opaque.on_cpu(self, x, rows)
            return on_cpu(self, x, rows)

    def local_weights(self) -> tuple[Any, Any, Tensor | None, Tensor | None]:
        """up, down (`expert_memory.Matrices`) and their biases, of the experts on this rank."""
        up_bias, down_bias = (None if b is None else local(b) for b in (self.up_bias, self.down_bias))
        if self.store is not None:
            return *self.store.matrices(), up_bias, down_bias
        return local(self.up), local(self.down), up_bias, down_bias

    def initialize(self) -> None:
        """Initialise what differs; called after `ditmoe.model.initialization` has set up, down and the biases."""


def from_store(
    experts: Experts, store: QuantizedExperts | OffloadedExperts, x: Float[Tensor, "A D"], rows: Rows
) -> Float[Tensor, "A D"]:
    """Apply one expert after the other, each dequantised or fetched in turn: the host must know which have rows.

    On a CPU the products are those of parameters, so that unquantised offloaded weights give bitwise equal results.
    """
    counts, weight = rows.counts.tolist(), rows.weight.to(x.dtype)
    up, down = store.chosen(counts, x.device)
    biases = experts.local_weights()[2:]
    return through_slices(x, weight, up, down, *biases, counts, experts.activation, store.at_once)[0]


def on_cuda(experts: Experts, x: Float[Tensor, "A D"], rows: Rows) -> Float[Tensor, "A D"]:
    """Two grouped matrix products whose bounds stay on the device, without synchronisation.

    That holds in bfloat16; float32 and float16 use PyTorch's fallback, which may synchronise.
    """
    ends = rows.counts.cumsum(0).to(torch.int32)
    up, down, up_bias, down_bias = experts.local_weights()
    weight = rows.weight.to(x.dtype)[:, None]
    h = grouped_mm(x, up.to(x.dtype).transpose(1, 2), ends)
    if up_bias is not None:
        h = h + up_bias.to(x.dtype)[rows.expert]
    inner = activate(h, experts.activation) * weight
    y = grouped_mm(inner, down.to(x.dtype).transpose(1, 2), ends)
    return y if down_bias is None else y + weight * down_bias.to(x.dtype)[rows.expert]


def grouped_mm(
    x: Float[Tensor, "A n"], matrices: Float[Tensor, "E n m"], ends: Int[Tensor, " E"]
) -> Float[Tensor, "A m"]:
    """Multiply each expert's rows by its matrix; compiles for every dtype, where torch's own does only for bfloat16."""
    if x.dtype != torch.bfloat16 and (x.is_cuda or torch.compiler.is_compiling()):
        from ditmoe.moe import opaque

        return opaque.grouped_mm(x, matrices, ends)
    n, m = matrices.shape[1:]
    if x.is_cuda and (n % 8 or m % 8):  # rows must be multiples of 16 bytes
        x, matrices = F.pad(x, (0, -n % 8)), F.pad(matrices, (0, -m % 8, 0, -n % 8))
        return F.grouped_mm(x, matrices, offs=ends)[:, :m]
    return F.grouped_mm(x, matrices, offs=ends)


def on_meta(experts: Experts, x: Float[Tensor, "A D"], rows: Rows) -> Float[Tensor, "A D"]:
    """For meta tensors, whose experts are unknown: all rows through the first expert, with the same operation count."""
    matrices = (None if p is None else p[:1] for p in experts.local_weights())
    return SlicedExperts.apply(x, rows.weight.to(x.dtype), *matrices, [len(x)], experts.activation)


def on_cpu(experts: Experts, x: Float[Tensor, "A D"], rows: Rows) -> Float[Tensor, "A D"]:
    """Apply one expert after the other to its slice of the rows."""
    counts, weight = rows.counts.tolist(), rows.weight.to(x.dtype)
    return SlicedExperts.apply(x, weight, *experts.local_weights(), counts, experts.activation)
