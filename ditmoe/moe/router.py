"""The router base class, and the context that it gets about the tokens and its place in the model."""

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
    """Inputs of a layer besides its tokens.

    Attributes:
        t: times, from data (0) to noise (1000), of samples, frames or tokens: a shape of `ditmoe.nn.layout`.
        time: their embedding.
        c: the conditioning vectors: embeddings of time and condition, summed.
        layout: which tokens belong to which sample, and their positions.
        unmodulated: the tokens after LayerNorm, before the conditioning's scale and shift.
        asked: the embedded condition, and which samples are unconditional (`asked.null`). Models always set it.
        t_on_host: `t` as numbers, if known on the host.
    """

    t: Float[Tensor, "*t"]
    time: Float[Tensor, "*t D"]
    c: Float[Tensor, "*t D"]
    layout: Layout
    unmodulated: Float[Tensor, "R N D"]
    asked: Embedded | None = None
    t_on_host: Float[np.ndarray, "*t"] | None = None

    def times_on_host(self) -> Float[np.ndarray, "*t"]:
        """The times as numbers; synchronises with the device unless the host has them already."""
        if self.t_on_host is not None:
            return self.t_on_host
        t = self.t.detach().cpu()
        return t.numpy() if t.dtype == torch.float64 else t.float().numpy()


@dataclass(frozen=True)
class Place:
    """The place of a router in a model.

    Attributes:
        layer: its index among the layers with experts.
        num_layers: the number of layers with experts.
        out_features: Q, predicted values per token.
        axes: of the token grid: 1 for a sequence, 2 for an image, 3 for a volume or a clip.
    """

    layer: int
    num_layers: int
    out_features: int
    axes: int


class Router(nn.Module, ABC):
    """Assigns tokens to experts.

    A router is a function of its weights, its buffers and its input. What changes from step to step (a threshold, a
    bias) is a buffer that only `update` changes, once per optimiser step, so that a forward pass can be repeated.
    Logits and scores are float32 under any autocast: in bfloat16 the updates of a router vanish.

    The attributes named in CLAIMS state what a router supports besides routing. A subclass does not inherit them, since
    it may compute something else: it has to state them again; anything not stated is refused.

    A plan (`ditmoe.cost`) runs the router on meta tensors, which have shapes and no values. A router that reads values
    on the host tests `x.is_meta` first, and then returns as many assignments as it would make.

    Attributes:
        num_experts: E.
        active: average number of experts per token that the router aims at.
        ranks: the processes over which a training batch is distributed.
        uses_collectives: whether its forward pass communicates with them.
        competes: whether tokens compete over a whole batch in training, so that samples influence each other. In
            sampling they never do.
        positional: whether the routing depends on a token's position, not only on its features.
        reads_times: whether it reads times as numbers, which are then best passed on the host (`Context.t_on_host`).
        beside_logits: names of its parts whose outputs are not logits, for muP.
        routing: the class of routing that its forward pass returns, by which FSDP finds the tensors in it.
        top_k_in_sampling: whether a token uses `top_k` experts in sampling too, so that `top_k` may be changed there.
        within_timestep: whether the router `timestep` may hold one such router per segment of time. It then gets some
            samples of a batch, or none, or some of their tokens (`Layout.only`, in which samples may have none), and
            it must return assignments to plain experts and have no branch.
    """

    CLAIMS: ClassVar[tuple[str, ...]] = ("top_k_in_sampling", "within_timestep")
    beside_logits: ClassVar[tuple[str, ...]] = ()
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
        """The ranks whose tokens make up a batch: all in training; in sampling each process has a batch of its own."""
        return self.ranks if self.training else ALONE

    @property
    def weights_sum_to_one(self) -> bool:
        """Whether the weights of each token always sum to one, so that equal experts amount to one dense layer."""
        return False

    def bind(self, place: Place) -> None:
        """Called once by the model, before the layer is built, with the router's place in it."""

    def before_pass(self, earlier: Sequence[Mapping[str, Tensor]]) -> None:
        """Called before each pass of a step with several (accumulation), with the statistics of the earlier ones."""

    def update(self, batch_stats: Sequence[Mapping[str, Tensor]]) -> None:
        """Called after each optimiser step, with the statistics of all its passes (`Routing.batch_stats`)."""

    def experts(self, hidden_size: int, inner: int, activation: str) -> Experts:
        """The experts that it routes to."""
        return Experts(self.num_experts, hidden_size, inner, activation)

    def shared(self, hidden_size: int, inner: int, activation: str) -> nn.Module:
        """The shared experts as one layer. Unless it is a `FeedForward`, it is called with tokens and context."""
        return FeedForward(hidden_size, inner, activation)

    def stem(self, hidden_size: int) -> nn.Module | None:
        """A module before the block's second LayerNorm, inside the residual branch; called with tokens and context."""
        return None

    def branch(self, hidden_size: int) -> nn.Module | None:
        """A module for all tokens, whose output is added to that of the experts; called with tokens and context."""
        return None

    def initialize(self) -> None:
        """Change the initialisation; called after `ditmoe.model.initialization` has applied that of all routers."""


def project(x: Float[Tensor, "*n D"], weight: Float[Tensor, "E D"]) -> Float[Tensor, "*n E"]:
    """x W^T in float32, also under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float())


def check_top_k(top_k: int, num_experts: int) -> None:
    """Raise ValueError unless there are that many experts."""
    if type(top_k) is not int or type(num_experts) is not int:
        raise ValueError(f"top_k and num_experts must be whole numbers, got {top_k!r} and {num_experts!r}")
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must lie between 1 and num_experts = {num_experts}, got {top_k}")


def check_positive(**options: float) -> None:
    """Raise ValueError naming the first option that is not a finite number above zero."""
    for name, value in options.items():
        check_number(name, value, above=0)


def check_not_negative(**options: float) -> None:
    """Raise ValueError naming the first option that is not a finite number of at least zero."""
    for name, value in options.items():
        check_number(name, value, 0)
