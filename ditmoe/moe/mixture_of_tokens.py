"""Mixture of Tokens: each expert processes one mixture of a few tokens, which share the result."""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ditmoe.moe.experts import Rows
from ditmoe.moe.router import Context, Router, check_positive, project
from ditmoe.moe.routing import Routing
from ditmoe.nn import Layout
from ditmoe.outside import check_number


@dataclass(frozen=True)
class GroupRouting(Routing):
    """A dense assignment within groups of consecutive tokens.

    Attributes:
        mix: weight of each token in its group's mixture for each expert, and of that mixture's result in the token;
            sums to 1 over the tokens of a group.
        group: tokens per group; the last one of a sample may have fewer.
    """

    mix: Float[Tensor, "T E"] = field(default_factory=lambda: torch.empty(0, 0))
    group: int = 1

    @property
    def unrouted(self) -> Float[Tensor, ""]:
        return torch.zeros((), device=self.mix.device)

    @property
    def chosen(self) -> Float[Tensor, "T E"]:
        return self.scores * (self.mix > 0)

    def without(self, expert: int | None) -> "GroupRouting":
        mix = self.mix.clone()
        mix[:, slice(None) if expert is None else expert] = 0
        return replace(self, mix=mix)

    def dispatch(self, x: Float[Tensor, "R N D"], layout: Layout) -> Rows:
        pairs = zip(layout.blocks(self.mix.to(x.dtype)), layout.blocks(x.flatten(0, 1)), strict=True)
        parts = [(grouped(mix, self.group), grouped(part, self.group)) for mix, part in pairs]
        rows = [torch.einsum("bgse,bgsd->ebgd", mix, part).flatten(1, 2) for mix, part in parts]
        return Rows(torch.cat(rows, dim=1).flatten(0, 1), self.weight, self.expert, self.counts, None)

    def combine(
        self, y: Float[Tensor, "A D"], rows: Rows, base: Float[Tensor, "R N D"], layout: Layout
    ) -> Float[Tensor, "R N D"]:
        blocks = layout.blocks(self.mix.to(y.dtype))
        mixes = [grouped(block, self.group) for block in blocks]
        results = y.view(self.mix.shape[1], -1, y.shape[-1]).split(
            [m.shape[0] * m.shape[1] for m in mixes], dim=1
        )
        out = []
        for block, mix, result in zip(blocks, mixes, results, strict=True):
            back = torch.einsum("bgse,ebgd->bgsd", mix, result.unflatten(1, mix.shape[:2]))
            out.append(back.flatten(1, 2)[:, : block.shape[1]].flatten(0, 1))
        return base + torch.cat(out).view(base.shape).to(base.dtype)


class MixtureOfTokens(Router):
    """Mixture of Tokens (arXiv 2310.15961): no discrete choice; each expert processes one row per group of G tokens.

        w_te = softmax over the tokens t of a group of (W x)_te / temperature
        y_t = sum_e w_te expert_e(sum_s w_se x_s)

    The paper groups tokens of different texts at the same position. Diffusion samples must not influence each other, so
    here a group is G consecutive tokens of one sample in row-major order, neighbours along the last axis. The average
    cost per token is that of E / G experts. No auxiliary loss; sampling is like training.

    Args:
        group: G.
        temperature: of the softmax; near zero a group's result is that of its highest-scoring token.
    """

    routing = GroupRouting
    positional = True

    def __init__(self, hidden_size: int, num_experts: int, group: int, temperature: float = 1.0) -> None:
        super().__init__()
        check_number("num_experts", num_experts, 1, whole=True)
        check_number("group", group, 1, whole=True)
        check_positive(temperature=temperature)
        self.num_experts, self.group, self.temperature = num_experts, group, temperature
        self.active = num_experts / group
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> GroupRouting:
        logits = project(x.flatten(0, 1), self.weight) / self.temperature
        shares, groups = [], 0
        for block in context.layout.blocks(logits):
            parts = grouped(block, self.group, fill=-torch.inf)
            share = parts.softmax(dim=2)
            groups += parts.shape[0] * parts.shape[1]
            shares.append(share.flatten(1, 2)[:, : block.shape[1]].flatten(0, 1))
        mix = torch.cat(shares)
        expert = torch.arange(self.num_experts, device=x.device).repeat_interleave(groups)
        weight = torch.ones(len(expert), device=x.device)
        likes = mix / mix.sum(dim=-1, keepdim=True).clamp_min(1e-20)
        return GroupRouting(torch.zeros_like(expert), expert, weight, likes, mix=mix, group=self.group)


def grouped(rows: Shaped[Tensor, "b N n"], size: int, fill: float = 0.0) -> Shaped[Tensor, "b g s n"]:
    """Split the rows of samples into groups, the last one padded."""
    return F.pad(rows, (0, 0, 0, -rows.shape[1] % size), value=fill).unflatten(1, (-1, size))
