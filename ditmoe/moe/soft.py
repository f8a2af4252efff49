"""Soft MoE: experts process mixtures of tokens, so there is no discrete choice and no dropping."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe.experts import Rows
from ditmoe.moe.router import Context, Router, check_positive
from ditmoe.moe.routing import Routing
from ditmoe.nn import Layout


@dataclass(frozen=True)
class SoftRouting(Routing):
    """A dense assignment: each slot mixes all tokens of a sample, each token all slots.

    Attributes:
        mix: weight of each token in each slot; sums to 1 over the tokens of a sample.
        back: weight of each slot in each token; sums to 1 over the slots.
    """

    mix: Float[Tensor, "T E S"] = field(default_factory=lambda: torch.empty(0, 0, 0))
    back: Float[Tensor, "T E S"] = field(default_factory=lambda: torch.empty(0, 0, 0))

    @property
    def unrouted(self) -> Float[Tensor, ""]:
        return torch.zeros((), device=self.mix.device)

    @property
    def chosen(self) -> Float[Tensor, "T E"]:
        return self.back.sum(-1)

    def without(self, expert: int | None) -> "SoftRouting":
        kept = torch.ones_like(self.back)
        kept[:, slice(None) if expert is None else expert] = 0
        return replace(self, back=self.back * kept)

    def dispatch(self, x: Float[Tensor, "R N D"], layout: Layout) -> Rows:
        pairs = zip(layout.blocks(self.mix.to(x.dtype)), layout.blocks(x.flatten(0, 1)), strict=True)
        slots = torch.cat([torch.einsum("bnes,bnd->ebsd", mix, part) for mix, part in pairs], dim=1)
        sample = (
            torch.arange(slots.shape[1], device=x.device)[None, :, None].expand(slots.shape[:3]).flatten()
        )
        return Rows(slots.flatten(0, 2), self.weight, self.expert, self.counts, sample)

    def combine(
        self, y: Float[Tensor, "A D"], rows: Rows, base: Float[Tensor, "R N D"], layout: Layout
    ) -> Float[Tensor, "R N D"]:
        y = y.view(self.mix.shape[1], -1, self.mix.shape[2], y.shape[-1])
        blocks = layout.blocks(self.back.to(y.dtype))
        parts = zip(blocks, y.split([len(back) for back in blocks], dim=1), strict=True)
        mixed = [torch.einsum("bnes,ebsd->bnd", back, part).flatten(0, 1) for back, part in parts]
        return base + torch.cat(mixed).view(base.shape).to(base.dtype)


class Soft(Router):
    """Soft MoE (arXiv 2308.00951): S slots for each of E experts, each a convex mixture of a sample's tokens.

        l = scale * normalize(x) normalize(Phi)                                  (section 2.3)
        slot inputs = softmax over tokens of l, times x;   y = softmax over slots of l, times slot outputs

    Fully differentiable, no auxiliary loss; sampling is like training. A slot costs as much as an assignment, so
    E S = K N matches the cost of top-K token choice.

    Args:
        slots: S, per expert; the paper has N / E.

    Raises:
        ValueError: if `slots` or `num_experts` is below 1.
    """

    routing = SoftRouting
    parameter_kinds: ClassVar[Mapping[str, str]] = {"scale": "norm"}

    def __init__(self, hidden_size: int, num_experts: int, slots: int) -> None:
        super().__init__()
        check_positive(num_experts=num_experts, slots=slots)
        self.num_experts, self.slots = num_experts, slots
        self.active = 1.0
        self.phi = nn.Parameter(torch.empty(num_experts * slots, hidden_size))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> SoftRouting:
        with torch.autocast(x.device.type, enabled=False):
            phi = F.normalize(self.phi.float(), dim=-1)
            logits = self.scale.float() * F.linear(F.normalize(x.float(), dim=-1), phi).flatten(0, 1)
            mix = torch.cat([part.softmax(dim=1).flatten(0, 1) for part in context.layout.blocks(logits)])
            mix, back = (w.unflatten(1, (self.num_experts, self.slots)) for w in (mix, logits.softmax(dim=1)))
        rows = len(context.layout.grids) * self.slots
        expert = torch.arange(self.num_experts, device=x.device).repeat_interleave(rows)
        weight = torch.ones(len(expert), device=x.device)
        token = torch.zeros_like(expert)
        return SoftRouting(token, expert, weight, back.sum(-1), mix=mix, back=back)

    def initialize(self) -> None:
        nn.init.ones_(self.scale)
