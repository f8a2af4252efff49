"""Timestep experts: each segment of the noise has experts of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe.routing import Context, Loss, Place, Router, Routing
from ditmoe.moe.soft import Soft


class TimestepExperts(Router):
    """The time of a sample chooses among S = len(boundaries) + 1 sets of experts; then a token router, if any, within.

    Wan 2.2 has two experts, one above t = 875 and one below; eDiff-I (arXiv 2211.01324) and its kin have more. All
    are trained by one run, on the samples that fall into their segment. Segment s spans
    boundaries[s-1] <= t < boundaries[s].

    Attention and shared experts serve all segments: with `model.shared_ratio=0` a feed-forward layer is its
    segment's alone. With a router inside, its experts, weights, losses and thresholds exist once per
    segment, and the losses count by the share of the samples. The segments are found on the host.

    Args:
        boundaries: times (0 data, 1000 noise) at which the experts change, ascending.
        router: makes the router within a segment; None sends all tokens to the segment's one expert, weight 1.

    Raises:
        ValueError: unless the boundaries ascend within 0 and 1000 and the router can work within a segment.
    """

    def __init__(
        self, hidden_size: int, boundaries: Sequence[float], router: Callable[..., Router] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(boundaries, Sequence) or not all(isinstance(b, int | float) for b in boundaries):
            raise ValueError(f"boundaries must be a list of times between 0 and 1000, got {boundaries!r}")
        if router is not None and not callable(router):
            raise ValueError(
                "timestep takes a router with experts, or router.router=null for one expert per segment"
            )
        edges = [0.0, *boundaries, 1000.0]
        if any(not a < b for a, b in pairwise(edges)):
            raise ValueError(f"boundaries must ascend between 0 and 1000, got {list(boundaries)}")
        self.boundaries = [float(b) for b in boundaries]
        segments = len(boundaries) + 1
        self.inner = nn.ModuleList(router(hidden_size=hidden_size) for _ in range(segments) if router)
        if any(isinstance(r, Soft) for r in self.inner):
            raise ValueError("timestep takes a router that assigns tokens to experts, and soft mixes them")
        if any(
            type(r).experts is not Router.experts or type(r).branch is not Router.branch for r in self.routers
        ):
            raise ValueError(
                "timestep takes a router without experts or a branch of its own, and diff_moe has both"
            )
        self.per_segment = self.routers[0].num_experts if router else 1
        self.num_experts = segments * self.per_segment
        self.active = self.routers[0].active if router else 1.0
        self.draft_coefficient = self.routers[0].draft_coefficient if router else 0.0

    @property
    def routers(self) -> list[Any]:
        """Those within the segments, none if it stands alone."""
        return list(self.inner)

    def settle(self, place: Place) -> None:
        for router in self.routers:
            router.settle(place)
        if self.routers:
            self.active = self.routers[0].active

    def forward(self, x: Float[Tensor, "B N D"], context: Context) -> Routing:
        edges = torch.tensor(self.boundaries, device=x.device, dtype=context.t.dtype)
        segment = torch.bucketize(context.t, edges, right=True)
        if self.routers:
            return self._within(x, context, segment)
        expert = segment.repeat_interleave(x.shape[1])
        scores = torch.nn.functional.one_hot(expert, self.num_experts).float()
        token = torch.arange(len(expert), device=x.device)
        return Routing(token, expert, torch.ones(len(expert), device=x.device), scores)

    def _within(self, x: Float[Tensor, "B N D"], context: Context, segment: Tensor) -> Routing:
        size, num_tokens, _ = x.shape
        parts = []
        for index, router in enumerate(self.routers):
            here = (segment == index).nonzero()[:, 0]
            if len(here):
                inside = replace(
                    context,
                    t=context.t[here],
                    time=context.time[here],
                    c=context.c[here],
                    plain=context.plain[here],
                )
                parts.append((index, here, router(x[here], inside)))
        token = [here[r.token // num_tokens] * num_tokens + r.token % num_tokens for _, here, r in parts]
        expert = [r.expert + index * self.per_segment for index, _, r in parts]
        scores = x.new_zeros(size, num_tokens, len(self.routers), self.per_segment, dtype=torch.float32)
        for index, here, r in parts:
            scores[here, :, index] = r.scores.view(len(here), num_tokens, -1)
        drafts = [(here, r.draft) for _, here, r in parts if r.draft is not None]
        return Routing(
            torch.cat(token),
            torch.cat(expert),
            torch.cat([r.weight for _, _, r in parts]),
            scores.view(size * num_tokens, self.num_experts),
            _merged([(len(here) / size, r.losses) for _, here, r in parts]),
            {f"{index}/{name}": value for index, _, r in parts for name, value in r.observed.items()},
            sum(dropped) if (dropped := [r.dropped for _, _, r in parts if r.dropped is not None]) else None,
            _scattered(drafts, size) if drafts else None,
        )

    def update(self, observed: Sequence[Mapping[str, Tensor]]) -> None:
        for index, router in enumerate(self.routers):
            prefix = f"{index}/"
            own = [{k[len(prefix) :]: v for k, v in o.items() if k.startswith(prefix)} for o in observed]
            if own := [o for o in own if o]:
                router.update(own)


def _merged(parts: Sequence[tuple[float, Mapping[str, Loss]]]) -> dict[str, Loss]:
    """Losses by name, weighted by the share of the samples."""
    merged: dict[str, Loss] = {}
    for share, losses in parts:
        for name, loss in losses.items():
            value, coefficient = share * loss.value, loss.coefficient
            if isinstance(coefficient, Tensor):  # one that moves, so it may differ
                value, coefficient = value * coefficient, 1.0
            merged[name] = Loss(merged[name].value + value if name in merged else value, coefficient)
    return merged


def _scattered(drafts: Sequence[tuple[Tensor, Tensor]], size: int) -> Tensor:
    whole = drafts[0][1].new_zeros(size, *drafts[0][1].shape[1:])
    for here, draft in drafts:
        whole = whole.index_copy(0, here, draft)
    return whole
