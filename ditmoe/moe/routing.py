"""Which token goes to which expert: a list of assignments, and how tokens are dispatched and combined by it."""

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
    """A sparse list of assignments and the dense scores behind it.

    Token choice gives A = T K rows, expert choice E C, a threshold any number; dispatch and combine are the
    same for all of them. Tokens are numbered through the batch, T in all.

    Attributes:
        token, expert, weight: one row per assignment. Where `padded`, rows of token T and expert E are none: they fill
            up a list whose length must not depend on the data (`listed`).
        scores: how much each token likes each expert; a distribution over the experts where there is one.
        losses: the router's own, by name.
        batch_stats: what `Router.update` must know of this batch.
        dropped: assignments that an expert had no room for.
        aux_prediction: per token, what the router's hidden layer makes of the final target (Expert Race).
        aux_coefficient: of its error in what is optimised.
        padded: whether some rows may be none.
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
        """Assignments per expert; on the device, without waiting for it."""
        num_experts = self.scores.shape[1]
        return count(self.expert, num_experts + self.padded)[:num_experts]

    @property
    def load(self) -> Float[Tensor, " E"]:
        """Share of the assignments that each expert received; sums to 1."""
        return self.counts / self.counts.sum().clamp_min(1)

    @property
    def unrouted(self) -> Float[Tensor, ""]:
        """Share of the tokens that no routed expert works on; they ride the residual and the shared experts."""
        num_tokens = len(self.scores)
        taken = torch.zeros(num_tokens + self.padded, device=self.token.device)
        return 1 - taken.index_fill(0, self.token, 1.0)[:num_tokens].mean()

    @property
    def chosen(self) -> Float[Tensor, "T E"]:
        """Which experts work on each token, 1 or 0; where they work on mixtures of tokens, the share of each."""
        (num_tokens, num_experts), one = self.scores.shape, torch.ones((), device=self.token.device)
        table = torch.zeros(num_tokens + self.padded, num_experts + self.padded, device=self.token.device)
        return table.index_put((self.token, self.expert), one)[:num_tokens, :num_experts]

    def without(self, expert: int | None) -> "Routing":
        """The same, but that one expert, or None of them all, works on no token; the others' weights stay."""
        kept = (
            self.expert != expert if expert is not None else torch.zeros_like(self.expert, dtype=torch.bool)
        )
        return replace(self, token=self.token[kept], expert=self.expert[kept], weight=self.weight[kept])

    def dispatch(self, x: Float[Tensor, "R N D"], layout: Layout) -> Rows:
        """The rows that the experts work on, sorted by expert; those that are none come last, as any token's."""
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
        """Add the experts' results to `base` where they came from."""
        assert rows.places is not None
        sums = AddUp.apply(y, *rows.places)[: len(self.scores)]
        return base + sums.to(base.dtype).view(base.shape)


class Gather(torch.autograd.Function):
    """Rows from their tokens. Its gradient adds up in a fixed order, on a GPU too, where `index_add` does not."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "T D"], *places: Tensor) -> Float[Tensor, "A D"]:
        ctx.save_for_backward(*places)
        ctx.num_tokens = len(x)
        return x.index_select(0, places[0])

    @staticmethod
    def backward(ctx: Any, dy: Float[Tensor, "A D"]) -> tuple[Tensor | None, ...]:
        return AddUp.apply(dy, *ctx.saved_tensors)[: ctx.num_tokens], None, None, None


class AddUp(torch.autograd.Function):
    """The sum of each token's rows, zero where it has none; transposes `Gather`. Rows that are none add up last."""

    @staticmethod
    def forward(ctx: Any, y: Float[Tensor, "A D"], *places: Tensor) -> Float[Tensor, "T D"]:
        ctx.save_for_backward(*places)
        return F.embedding_bag(places[1], y.contiguous(), places[2], mode="sum", include_last_offset=True)

    @staticmethod
    def backward(ctx: Any, dx: Float[Tensor, "T D"]) -> tuple[Tensor | None, ...]:
        return Gather.apply(dx, *ctx.saved_tensors), None, None, None


def fixed_length(x: Tensor) -> bool:
    """Whether a list keeps its length, rows that are none included: where the host would have to wait for the number.

    It would wait for a GPU, in every layer; and what is compiled would be so anew for each number. On a CPU the number
    is at hand, and fewer rows are less work. (A plan counts shapes alone and says how many they would be.)
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
    """The routing of those of some assignments that are kept."""
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
    """The routing of a mask; a list of fixed length has all T E pairs, of which the chosen ones are computed."""
    if not fixed_length(chosen):
        token, expert = chosen.nonzero(as_tuple=True)
        return Routing(token, expert, weights[token, expert], scores, **extra)
    num_tokens, num_experts = chosen.shape
    token = torch.arange(num_tokens, device=chosen.device)[:, None].expand(-1, num_experts)
    expert = torch.arange(num_experts, device=chosen.device).expand(num_tokens, -1)
    flat = chosen.flatten(), token.flatten(), expert.flatten(), weights.flatten()
    return listed(*flat, scores, **extra)


def count(index: Int[Tensor, " A"], length: int) -> Int[Tensor, " length"]:
    """How often each number below `length` occurs; without waiting for the device."""
    zeros = torch.zeros(length, dtype=torch.int64, device=index.device)
    return zeros.index_add(0, index, torch.ones_like(index))
