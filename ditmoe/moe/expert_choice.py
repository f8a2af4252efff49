"""Expert choice: each expert takes its highest-scoring tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe.capacity import Sparsified, by_time
from ditmoe.moe.router import Context, Place, Router, check_positive, project
from ditmoe.moe.routing import Routing, fixed_length
from ditmoe.moe.token_choice import capacity as room_of
from ditmoe.outside import check_number


class ExpertChoice(Router):
    """Each expert takes its C = ceil(capacity N / E) top tokens of each sample (EC-DiT, arXiv 2410.02098).

        s = softmax(W x) over the experts,   expert e takes the C largest of s[:, e],   w = s   [* route_scale]

    Balanced by construction. A token may get many experts or none; without any, only the residual and the shared
    experts remain. A diffusion model processes all tokens of a sample at once, so sampling is like training.

    Args:
        capacity: experts per token, on average; one value for all sparse layers, or one per layer.
        decoupled: score W [time embedding / its root mean square; x before modulation] in place of W x: the norm of
            modulated tokens varies tenfold over noise levels, which drowns their content (Nucleus-Image, arXiv
            2604.12163).
        renormalize: make the weights of a token sum to one over the experts that took it.
        route_scale: factor on the weights.
        score: "softmax", or "sigmoid" of each logit.
        by_time: a; a sample at time t has capacity (1 + a (1 - 2 t / 1000)), see `capacity.by_time`; 0 is off.
        sparsify: first and last training step of lowering the capacity from all experts, see `capacity.Sparsified`.

    Raises:
        ValueError: if the capacity is above the number of experts, has one value per layer but not as many as sparse
            layers, or, in the forward pass, is below one token; or if another option is out of range.
    """

    within_timestep = True

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        capacity: float | Sequence[float] = 2.0,
        decoupled: bool = False,
        renormalize: bool = False,
        route_scale: float = 1.0,
        score: str = "softmax",
        by_time: float = 0.0,
        sparsify: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        several = isinstance(capacity, Sequence) and not isinstance(capacity, str)
        capacities: list[Any] = list(capacity) if several else [capacity]  # type: ignore[arg-type]
        if not capacities or not all(isinstance(value, int | float) for value in capacities):
            raise ValueError(f"capacity must be one number, or one for each layer, got {capacity!r}")
        check_number("by_time", by_time, above=-1, below=1)
        for value in capacities:
            if not 0 < value * (1 + abs(by_time)) <= num_experts:
                raise ValueError(
                    f"capacity must lie above 0 and not above num_experts = {num_experts}, got {value}"
                    + (f" times up to {1 + abs(by_time):g} by time" if by_time else "")
                )
        if score not in ("softmax", "sigmoid"):
            raise ValueError(f"score must be softmax or sigmoid, got {score!r}")
        check_positive(route_scale=route_scale)
        self.num_experts, self.active = num_experts, float(capacities[0])
        self.capacities = capacities if len(capacities) != 1 else None
        self.decoupled, self.renormalize, self.route_scale = decoupled, renormalize, route_scale
        self.score, self.by_time = score, by_time
        self.sparsified = None if sparsify is None else Sparsified(num_experts, sparsify)
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.time_weight = nn.Parameter(torch.empty(num_experts, hidden_size)) if decoupled else None

    def bind(self, place: Place) -> None:
        if self.capacities is None:
            return
        if len(self.capacities) != place.num_layers:
            raise ValueError(
                f"capacity must have one entry for each of {place.num_layers} layers with experts, "
                f"got {len(self.capacities)}"
            )
        self.active = float(self.capacities[place.layer])

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> Routing:
        layout = context.layout
        if self.time_weight is None:
            logits = project(x, self.weight)
        else:
            time = context.time.float()  # tiny at initialisation
            time = time * (time.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()
            logits = project(context.unmodulated, self.weight) + layout.spread(
                project(time, self.time_weight)
            )
        scores = (logits.softmax(dim=-1) if self.score == "softmax" else logits.sigmoid()).flatten(0, 1)
        known = not x.is_meta  # of times and steps; a plan assumes the mean time and the last step
        capacity = self.sparsified(self.active) if self.sparsified and known else self.active
        blocks = layout.blocks(scores)
        factors: list[Tensor | None] = [None] * len(blocks)
        padded = bool(self.by_time) and known and fixed_length(scores)
        if self.by_time and known:
            factors = [block[:, 0] for block in layout.blocks(by_time(self.by_time, context))]
        taken, start = [], 0
        for block, factor in zip(blocks, factors, strict=True):
            taken.append(self._take(block, capacity, factor, start, len(scores), layout.packed))
            start += block.shape[0] * block.shape[1]
        token, expert, weight = (torch.cat(parts) for parts in zip(*taken, strict=True))
        if self.renormalize:
            total = torch.zeros(start + padded, device=x.device).index_add(0, token, weight)
            # Zero where all experts that took the token score it zero.
            weight = weight / total[token].clamp_min(1e-9)
        batch_stats = {"capacity": weight.new_tensor(capacity)} if self.sparsified and known else {}
        return Routing(
            token, expert, self.route_scale * weight, scores, batch_stats=batch_stats, padded=padded
        )

    def update(self, batch_stats: Sequence[Mapping[str, Tensor]]) -> None:
        if self.sparsified is not None:
            self.sparsified.update()

    def _take(
        self,
        scores: Float[Tensor, "B N E"],
        capacity: float,
        factor: Float[Tensor, " B"] | None,
        start: int,
        total: int,
        packed: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (indices from `start` in a batch of `total`), experts and weights for samples of one length.

        Their capacities may differ.
        """
        size, num_tokens, _ = scores.shape
        most = capacity if factor is None else min(capacity * (1 + abs(self.by_time)), self.num_experts)
        room = room_of(most, num_tokens, self.num_experts, packed)
        weight, place = scores.transpose(1, 2).topk(room, dim=-1)  # (B, E, C)
        token = place + start + num_tokens * torch.arange(size, device=scores.device)[:, None, None]
        expert = torch.arange(self.num_experts, device=scores.device)[:, None].expand(size, -1, room)
        if factor is None:
            return token.flatten(), expert.flatten(), weight.flatten()
        rooms = (factor * capacity * num_tokens / self.num_experts - 1e-4).ceil().clamp_min(1)
        kept = (torch.arange(room, device=scores.device) < rooms[:, None, None]).expand_as(weight)
        if not fixed_length(kept):
            return token[kept], expert[kept], weight[kept]
        rows = torch.where(kept, token, total), torch.where(kept, expert, self.num_experts)
        return rows[0].flatten(), rows[1].flatten(), torch.where(kept, weight, 0.0).flatten()
