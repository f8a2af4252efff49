"""The routed experts: stacked weights, and how sorted rows go through them."""

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
    """Where rows that are one token each come from, and where their results go.

    Attributes:
        token: of each row, numbered through the batch.
        row: the rows in the order of their tokens.
        bounds: where in that order the rows of each token begin, and if some are none, where these do; at the end
            their number.
    """

    token: Int[Tensor, " A"]
    row: Int[Tensor, " A"]
    bounds: Int[Tensor, " bounds"]


@dataclass(frozen=True)
class Rows:
    """What the experts work on: one row per assignment, sorted by expert.

    Attributes:
        x: inputs.
        weight: factor on each result.
        expert: of each row, ascending.
        counts: rows of each expert.
        sample: of the batch, that each row belongs to; None where rows came from elsewhere.
        places: of the rows, where each is a token.
        layout: then, of these.
        padded: whether rows beyond the counts may follow, which nobody works on: zero goes in and comes out.
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
        """Which rows are none."""
        return (torch.arange(len(self.x), device=self.x.device) >= self.counts.sum())[:, None]

    def row_of(self, shape: Sequence[int]) -> Int[Tensor, " A"]:
        """Which of times of this shape (see `ditmoe.nn.layout`), counted through the batch, each row has.

        Raises:
            ValueError: for times within samples where rows are mixtures of tokens, or came from elsewhere.
        """
        if len(shape) == 1 and self.sample is not None:
            return self.sample
        if self.places is None or self.layout is None:
            raise ValueError("experts that work on mixtures of tokens know no time per frame or token")
        return self.layout.row_of(self.places.token, shape)


class Experts(nn.Module):
    """E feed-forward layers of one shape, weights stacked along the first axis as (E, out, in).

    GELU experts carry biases as DiT's MLP does, so that a dense layer can become an expert exactly.

    Attributes:
        std: deviation of the initial values; None is Xavier.
        exchange: brings rows to the ranks among which the experts are spread; None where all are at hand.
        store: has the matrices where `up` and `down` are None (`ditmoe.model.LowMemory`).
        spreadable: whether they need nothing but their rows, which is all that travels between ranks. A subclass may
            need more, so it says so anew, or is not spread.
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
        """Each row through its expert, times its weight; `c` is the conditioning (see `Context`), not used here."""
        return self.compute(rows.x, rows)

    def compute(self, x: Float[Tensor, "A D"], rows: Rows) -> Float[Tensor, "A D"]:
        """The experts on inputs in place of the rows' own:  y = w (down f(up x + bias) + bias).

        The weight is applied between the two matrices, so that its gradient needs no expert output.
        """
        if self.exchange is not None:
            return self.exchange(self.own, x, rows)
        return self.own(x, rows)

    def own(self, x: Float[Tensor, "A D"], rows: Rows) -> Float[Tensor, "A D"]:
        """The same, of experts that are all at hand."""
        if not rows.padded:
            return self._each(x, rows)
        # What is beyond the rows is memory that nobody wrote: it must not be seen, nor its gradient.
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
        """Told after `ditmoe.model.initialization` gave up, down and biases theirs: what starts otherwise."""


def from_store(
    experts: Experts, store: QuantizedExperts | OffloadedExperts, x: Float[Tensor, "A D"], rows: Rows
) -> Float[Tensor, "A D"]:
    """One expert after the other, each dequantised, or fetched, when its turn comes: the host must know who has rows.

    On a CPU the same products as of parameters, so that weights that are only elsewhere give the same bits.
    """
    counts, weight = rows.counts.tolist(), rows.weight.to(x.dtype)
    up, down = store.chosen(counts, x.device)
    biases = experts.local_weights()[2:]
    return through_slices(x, weight, up, down, *biases, counts, experts.activation, store.at_once)[0]


def on_cuda(experts: Experts, x: Float[Tensor, "A D"], rows: Rows) -> Float[Tensor, "A D"]:
    """Two grouped products whose bounds stay on the device, so that nobody waits for it.

    That is in bfloat16; float32 and float16 take PyTorch's own fallback, which may wait for them.
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
    """Rows of each expert times its matrix, in every type also compiled, which torch's own is in bfloat16 alone."""
    if x.dtype != torch.bfloat16 and (x.is_cuda or torch.compiler.is_compiling()):
        from ditmoe.moe import opaque

        return opaque.grouped_mm(x, matrices, ends)
    n, m = matrices.shape[1:]
    if x.is_cuda and (n % 8 or m % 8):  # whose rows must be multiples of 16 bytes
        x, matrices = F.pad(x, (0, -n % 8)), F.pad(matrices, (0, -m % 8, 0, -n % 8))
        return F.grouped_mm(x, matrices, offs=ends)[:, :m]
    return F.grouped_mm(x, matrices, offs=ends)


def on_meta(experts: Experts, x: Float[Tensor, "A D"], rows: Rows) -> Float[Tensor, "A D"]:
    """Rows without values, whose experts nobody knows: all through the first, as many products as through their own."""
    matrices = (None if p is None else p[:1] for p in experts.local_weights())
    return SlicedExperts.apply(x, rows.weight.to(x.dtype), *matrices, [len(x)], experts.activation)


def on_cpu(experts: Experts, x: Float[Tensor, "A D"], rows: Rows) -> Float[Tensor, "A D"]:
    """One expert after the other, each on its slice of the rows: their number is at hand."""
    counts, weight = rows.counts.tolist(), rows.weight.to(x.dtype)
    return SlicedExperts.apply(x, weight, *experts.local_weights(), counts, experts.activation)
