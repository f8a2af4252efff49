"""Who goes where: what a router is told, what it answers, and what every router is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ditmoe.conditioning import Embedded
from ditmoe.distributed import ALONE, Ranks
from ditmoe.moe.experts import Experts, Places, Rows
from ditmoe.nn import FeedForward, Layout
from ditmoe.outside import check_number


@dataclass(frozen=True)
class Context:
    """What a layer may know beside the tokens that it works on.

    Attributes:
        t: times, from data (0) to noise (1000), of samples, frames or tokens: a shape of `ditmoe.nn.layout`.
        time: their embedding.
        c: the conditioning vectors, the time and what is asked for together.
        layout: which tokens belong to which sample, and where each lies.
        unmodulated: the tokens after LayerNorm, before the conditioning's scale and shift.
        asked: what is asked for, embedded, and which samples are unconditional (`asked.null`); every model gives it.
        told: `t` as numbers, where the host knows them.
    """

    t: Float[Tensor, "*t"]
    time: Float[Tensor, "*t D"]
    c: Float[Tensor, "*t D"]
    layout: Layout
    unmodulated: Float[Tensor, "R N D"]
    asked: Embedded | None = None
    told: Float[np.ndarray, "*t"] | None = None

    def times_on_host(self) -> Float[np.ndarray, "*t"]:
        """The times as numbers; the device is waited for where nobody told them."""
        if self.told is not None:
            return self.told
        t = self.t.detach().cpu()
        return t.numpy() if t.dtype == torch.float64 else t.float().numpy()


@dataclass(frozen=True)
class Place:
    """Where in a model a router stands.

    Attributes:
        layer: its index among the layers with experts.
        num_layers: how many those are.
        out_features: numbers that a token predicts.
        axes: of the token grid: 1 a sequence, 2 an image, 3 a volume or a clip.
    """

    layer: int
    num_layers: int
    out_features: int
    axes: int


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


class Router(nn.Module, ABC):
    """Assigns tokens to experts.

    A router is a function of its weights, its buffers and its input: whatever moves from step to step (a
    threshold, a bias) lives in buffers that only `update` changes, once per optimiser step, so that a
    forward pass can be repeated. Logits and scores are float32 whatever the precision around them: in bf16 the
    updates of a router vanish.

    What a router can do beyond routing it says itself, in the attributes of CLAIMS: a subclass may compute something
    else, so it claims anew, and what is not claimed is refused.

    A plan (`ditmoe.cost`) runs it on tensors that have shapes and no values: one that reads values on the host asks
    `x.is_meta` first, and then answers as many assignments as it would.

    Attributes:
        num_experts: E.
        active: experts per token that it aims at, on average.
        ranks: the processes among which training batches are spread.
        uses_collectives: whether its forward pass takes part in sums or collections over them.
        competes: whether the tokens of a whole batch compete in training, so that its samples see each other there; in
            sampling those of no router do.
        positional: whether it matters to it where a token lies, beside what the token is.
        reads_times: whether it reads the times as numbers, which then had better be told on the host (`Context.told`).
        routing: the kind of routing that its forward pass returns, for FSDP to find the tensors in it.
        top_k_in_sampling: whether `top_k` is what a token takes when sampling too, so that it may be changed then.
        within_timestep: whether `timestep` may hold one per segment, which gets some samples of a batch, or none, or
            some tokens of them (`Layout.only`, some samples then without any), and whose answer must be a list of
            assignments to plain experts, with no branch beside them.
    """

    CLAIMS: ClassVar[tuple[str, ...]] = ("top_k_in_sampling", "within_timestep")
    routing: ClassVar[type[Routing]] = Routing
    top_k_in_sampling: ClassVar[bool] = False
    within_timestep: ClassVar[bool] = False
    num_experts: int
    active: float
    ranks: Ranks = ALONE
    uses_collectives: bool = False
    competes: bool = False
    positional: bool = False
    reads_times: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for claim in cls.CLAIMS:
            setattr(cls, claim, vars(cls).get(claim, False))

    @abstractmethod
    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> Routing:
        """Route each token of each sample."""

    @property
    def pool(self) -> Ranks:
        """Whose tokens make up the batch: those of all ranks, but when sampling each process is for itself."""
        return self.ranks if self.training else ALONE

    @property
    def weights_sum_to_one(self) -> bool:
        """Whether those of each token always do, so that equal experts make one dense layer."""
        return False

    def bind(self, place: Place) -> None:
        """Told once by the model, before the layer is built: where the router stands."""

    def before_pass(self, earlier: Sequence[Mapping[str, Tensor]]) -> None:
        """Told before each forward pass of a step that has several: what those before it in this step observed."""

    def update(self, batch_stats: Sequence[Mapping[str, Tensor]]) -> None:
        """Told after each optimiser step: what its forward passes observed (`Routing.batch_stats`)."""

    def experts(self, hidden_size: int, inner: int, activation: str) -> Experts:
        """The experts that it routes to."""
        return Experts(self.num_experts, hidden_size, inner, activation)

    def shared(self, hidden_size: int, inner: int, activation: str) -> nn.Module:
        """The shared experts, one layer; if it is no `FeedForward`, it is called with tokens and context."""
        return FeedForward(hidden_size, inner, activation)

    def stem(self, hidden_size: int) -> nn.Module | None:
        """What tokens pass before the layer's LayerNorm, called with tokens and context; the shortcut goes around."""
        return None

    def branch(self, hidden_size: int) -> nn.Module | None:
        """What works on all tokens beside shared and routed experts, called with tokens and context."""
        return None

    def initialize(self) -> None:
        """Told after `ditmoe.model.initialization` gave its weights those of a router: what starts otherwise."""


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


def project(x: Float[Tensor, "*n D"], weight: Float[Tensor, "E D"]) -> Float[Tensor, "*n E"]:
    """x W^T in float32, under autocast as well."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float())


def count(index: Int[Tensor, " A"], length: int) -> Int[Tensor, " length"]:
    """How often each number below `length` occurs; without waiting for the device."""
    zeros = torch.zeros(length, dtype=torch.int64, device=index.device)
    return zeros.index_add(0, index, torch.ones_like(index))


def check_top_k(top_k: int, num_experts: int) -> None:
    """Raises ValueError unless a token can take that many experts."""
    if not isinstance(top_k, int) or not isinstance(num_experts, int):
        raise ValueError(f"top_k and num_experts must be whole numbers, got {top_k!r} and {num_experts!r}")
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must lie between 1 and num_experts = {num_experts}, got {top_k}")


def check_positive(**options: float) -> None:
    """Raises ValueError naming the first option that is no finite number above zero."""
    for name, value in options.items():
        check_number(name, value, above=0)


def check_not_negative(**options: float) -> None:
    """Raises ValueError naming the first option that is no finite number of at least zero."""
    for name, value in options.items():
        check_number(name, value, 0)
