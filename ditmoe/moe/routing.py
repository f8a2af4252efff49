"""Routing: a list of assignments of tokens to experts, by which tokens are dispatched and combined."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ditmoe.moe.experts import Places, Rows
from ditmoe.nn import Layout


class Loss(NamedTuple):
    """A router's own loss; what is optimised is coefficient * value, summed over the layers."""

    value: Float[Tensor, ""]
    coefficient: float | Float[Tensor, ""]


@dataclass(frozen=True)
class Routing:
    """A sparse list of A assignments of tokens to experts, and the dense scores behind it.

    A is T K for token choice, E C for expert choice, and any number for a threshold; dispatch and combine are the same
    for all. The T tokens of a batch have consecutive indices.

    Attributes:
        token, expert, weight: of each assignment. If `padded`, entries with token T and expert E are padding, which
            keeps the length of the list independent of the data (`listed`).
        scores: of each expert for each token; a distribution over the experts where the router has one.
        losses: the router's own, by name.
        batch_stats: statistics of this batch for `Router.update`.
        dropped: number of assignments for which an expert had no capacity left.
        aux_prediction: of each token, the router's prediction of the model's target (Expert Race).
        aux_coefficient: factor on its error in the training loss.
        padded: whether some entries may be padding.
    """

    token: Int[Tensor, " A"]
    expert: Int[Tensor, " A"]
    weight: Float[Tensor, " A"]
    scores: Float[Tensor, "T E"]
    losses: Mapping[str, Loss] = field(default_factory=dict)
    batch_stats: Mapping[str, Tensor] = field(default_factory=dict)
    dropped: Int[Tensor, ""] | None = None
    aux_prediction: Float[Tensor, "B *n"] | None = None
    aux_coefficient: float = 0.0
    padded: bool = False

    @property
    def counts(self) -> Int[Tensor, " E"]:
        """Number of assignments of each expert; it stays on the device."""
        num_experts = self.scores.shape[1]
        return count(self.expert, num_experts + self.padded)[:num_experts]

    @property
    def load(self) -> Float[Tensor, " E"]:
        """Share of all assignments that each expert has; sums to 1."""
        return self.counts / self.counts.sum().clamp_min(1)

    @property
    def unrouted(self) -> Float[Tensor, ""]:
        """Share of the tokens without a routed expert, processed only by the shared experts."""
        num_tokens = len(self.scores)
        taken = torch.zeros(num_tokens + self.padded, device=self.token.device)
        return 1 - taken.index_fill(0, self.token, 1.0)[:num_tokens].mean()

    @property
    def chosen(self) -> Float[Tensor, "T E"]:
        """1 where an expert processes a token, else 0. If experts process mixtures of tokens, each token's weight."""
        (num_tokens, num_experts), one = self.scores.shape, torch.ones((), device=self.token.device)
        table = torch.zeros(num_tokens + self.padded, num_experts + self.padded, device=self.token.device)
        return table.index_put((self.token, self.expert), one)[:num_tokens, :num_experts]

    def without(self, expert: int | None) -> "Routing":
        """A copy without the assignments of one expert, or of all if it is None; other weights do not change."""
        none = torch.zeros_like(self.expert, dtype=torch.bool)
        kept = none if expert is None else self.expert != expert
        return replace(self, token=self.token[kept], expert=self.expert[kept], weight=self.weight[kept])

    def dispatch(self, x: Float[Tensor, "R N D"], layout: Layout) -> Rows:
        """The experts' inputs, one row per assignment, sorted by expert. Padding rows come last and hold any token."""
        order = self.expert.argsort(stable=True)
        token, expert = self.token[order], self.expert[order]
        num_tokens, num_experts = self.scores.shape
        ends = count(token, num_tokens + self.padded).cumsum(0)
        row = token.argsort(stable=True)
        if self.padded:
            token, expert = token.clamp(max=num_tokens - 1), expert.clamp(max=num_experts - 1)
        places = Places(token, row, F.pad(ends, (1, 0)))
        rows = Gather.apply(x.flatten(0, 1), *places)
        sample, weight = layout.sample_of(token), self.weight[order]
        return Rows(rows, weight, expert, self.counts, sample, places, layout, self.padded)

    def combine(
        self, y: Float[Tensor, "A D"], rows: Rows, base: Float[Tensor, "R N D"], layout: Layout
    ) -> Float[Tensor, "R N D"]:
        """Add the results of the experts to their tokens in `base`."""
        assert rows.places is not None
        sums = AddUp.apply(y, *rows.places)[: len(self.scores)]
        return base + sums.to(base.dtype).view(base.shape)


class Gather(torch.autograd.Function):
    """Copies each token to its rows. Unlike `index_add`, the gradient sums in a fixed order on a GPU, too."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "T D"], *places: Tensor) -> Float[Tensor, "A D"]:
        ctx.save_for_backward(*places)
        ctx.num_tokens = len(x)
        return x.index_select(0, places[0])

    @staticmethod
    def backward(ctx: Any, dy: Float[Tensor, "A D"]) -> tuple[Tensor | None, ...]:
        return AddUp.apply(dy, *ctx.saved_tensors)[: ctx.num_tokens], None, None, None


class AddUp(torch.autograd.Function):
    """Sums the rows of each token, the transpose of `Gather`. Padding is summed into an extra last row."""

    @staticmethod
    def forward(ctx: Any, y: Float[Tensor, "A D"], *places: Tensor) -> Float[Tensor, "T D"]:
        ctx.save_for_backward(*places)
        return F.embedding_bag(places[1], y.contiguous(), places[2], mode="sum", include_last_offset=True)

    @staticmethod
    def backward(ctx: Any, dx: Float[Tensor, "T D"]) -> tuple[Tensor | None, ...]:
        return Gather.apply(dx, *ctx.saved_tensors), None, None, None


def fixed_length(x: Tensor) -> bool:
    """Whether lists of assignments are padded to a length that does not depend on the data.

    Otherwise the host would synchronise with a GPU in every layer, and code would be recompiled for each length. On a
    CPU the length is known, and fewer rows are less work. A plan, on meta tensors, counts the expected rows.
    """
    return torch.compiler.is_compiling() or x.device.type not in ("cpu", "meta")


def listed(
    kept: Bool[Tensor, " A"],
    token: Int[Tensor, " A"],
    expert: Int[Tensor, " A"],
    weight: Float[Tensor, " A"],
    scores: Float[Tensor, "T E"],
    **extra: Any,
) -> Routing:
    """Make a routing of the assignments that are `kept`; the others become padding where lengths are fixed."""
    if not fixed_length(kept):
        return Routing(token[kept], expert[kept], weight[kept], scores, **extra)
    token, expert = (
        torch.where(kept, index, size) for index, size in zip((token, expert), scores.shape, strict=True)
    )
    return Routing(token, expert, torch.where(kept, weight, 0.0), scores, padded=True, **extra)


def assign(
    chosen: Bool[Tensor, "T E"],
    weights: Float[Tensor, "T E"],
    scores: Float[Tensor, "T E"],
    **extra: Any,
) -> Routing:
    """Make a routing from a mask over tokens and experts; where lengths are fixed, the list has all T E pairs."""
    if not fixed_length(chosen):
        token, expert = chosen.nonzero(as_tuple=True)
        return Routing(token, expert, weights[token, expert], scores, **extra)
    num_tokens, num_experts = chosen.shape
    token = torch.arange(num_tokens, device=chosen.device)[:, None].expand(-1, num_experts)
    expert = torch.arange(num_experts, device=chosen.device).expand(num_tokens, -1)
    flat = chosen.flatten(), token.flatten(), expert.flatten(), weights.flatten()
    return listed(*flat, scores, **extra)


def count(index: Int[Tensor, " A"], length: int) -> Int[Tensor, " length"]:
    """How often each number below `length` occurs. Unlike `bincount`, it does not make the host wait for the device."""
    zeros = torch.zeros(length, dtype=torch.int64, device=index.device)
    return zeros.index_add(0, index, torch.ones_like(index))
