"""What every router is, and what it is told about the tokens and its place in the model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.conditioning import Embedded
from ditmoe.distributed import ALONE, Ranks
from ditmoe.moe.experts import Experts
from ditmoe.moe.routing import Routing
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


def project(x: Float[Tensor, "*n D"], weight: Float[Tensor, "E D"]) -> Float[Tensor, "*n E"]:
    """x W^T in float32, under autocast as well."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float())


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
