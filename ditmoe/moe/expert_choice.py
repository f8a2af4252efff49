"""Expert choice: each expert takes the tokens that it likes best."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe.routing import Context, Place, Router, Routing, check_positive, project
from ditmoe.moe.token_choice import capacity as room_of


class ExpertChoice(Router):
    """Each expert takes its C = ceil(capacity N / E) tokens of each sample (EC-DiT, arXiv 2410.02098).

        s = softmax(W x) over the experts,   expert e takes the C largest of s[:, e],   w = s   [* route_scale]

    Balanced by construction. A token may get many experts or none; it then rides the residual and the shared
    experts. Diffusion sees all tokens of a sample at once, so sampling needs nothing that training does not.

    Args:
        capacity: experts per token, on average; one number for all sparse layers, or one for each.
        decoupled: score W [time embedding; x before modulation] in place of W x: the modulated tokens change their
            norm tenfold over the noise levels, which drowns what they hold (Nucleus-Image).
        renormalize: let the weights of a token sum to one over the experts that took it.
        route_scale: factor on the weights.

    Raises:
        ValueError: if the capacity is above the number of experts, has another length than the model has sparse
            layers, or, in the forward pass, is below one token.
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
    ) -> None:
        super().__init__()
        several = isinstance(capacity, Sequence) and not isinstance(capacity, str)
        capacities: list[Any] = list(capacity) if several else [capacity]  # type: ignore[arg-type]
        if not capacities or not all(isinstance(value, int | float) for value in capacities):
            raise ValueError(f"capacity must be one number, or one for each layer, got {capacity!r}")
        for value in capacities:
            if not 0 < value <= num_experts:
                raise ValueError(
                    f"capacity must lie above 0 and not above num_experts = {num_experts}, got {value}"
                )
        check_positive(route_scale=route_scale)
        self.num_experts, self.active = num_experts, float(capacities[0])
        self.capacities = capacities if len(capacities) != 1 else None
        self.decoupled, self.renormalize, self.route_scale = decoupled, renormalize, route_scale
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
            logits = project(context.unmodulated, self.weight) + layout.spread(
                project(context.time, self.time_weight)
            )
        scores = logits.softmax(dim=-1).flatten(0, 1)
        taken, start = [], 0
        for block in layout.blocks(scores):
            taken.append(self._take(block, start, layout.packed))
            start += block.shape[0] * block.shape[1]
        token, expert, weight = (torch.cat(parts) for parts in zip(*taken, strict=True))
        if self.renormalize:
            total = torch.zeros(start, device=x.device).index_add(0, token, weight)
            weight = weight / total[token].clamp_min(
                1e-9
            )  # of a token that only those took who do not want it
        return Routing(token, expert, self.route_scale * weight, scores)

    def _take(
        self, scores: Float[Tensor, "B N E"], start: int, packed: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, numbered from `start`, experts and weights of samples of one length."""
        size, num_tokens, _ = scores.shape
        room = room_of(self.active, num_tokens, self.num_experts, packed)
        weight, place = scores.transpose(1, 2).topk(room, dim=-1)  # (B, E, C)
        token = place + start + num_tokens * torch.arange(size, device=scores.device)[:, None, None]
        expert = torch.arange(self.num_experts, device=scores.device)[:, None].expand(size, -1, room)
        return token.flatten(), expert.flatten(), weight.flatten()
