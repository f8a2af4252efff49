"""Timestep experts: each segment of the noise has experts of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ditmoe.moe.routing import Context, Loss, Place, Router, Routing


class TimestepExperts(Router):
    """The time of a token chooses among S = len(boundaries) + 1 sets of experts; then a token router, if any, within.

    Wan 2.2 has two experts, one above t = 875 and one below; eDiff-I (arXiv 2211.01324) and its kin have more. All
    are trained by one run, on the samples that fall into their segment; of a sample with several times, on the tokens
    that do, a sample of their own to the router within. Segment s spans boundaries[s-1] <= t < boundaries[s].

    Attention and shared experts serve all segments: with `model.shared_ratio=0` a feed-forward layer is its
    segment's alone. With a router inside, its experts, weights, losses and thresholds exist once per
    segment, and the losses count by the share of the samples (of each, by the share of its tokens). The segments are
    found on the host.

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
        if len(boundaries) > 1000:
            raise ValueError(f"boundaries must be at most 1000, got {len(boundaries)}")
        edges = [0.0, *boundaries, 1000.0]
        if any(not a < b for a, b in pairwise(edges)):
            raise ValueError(f"boundaries must ascend between 0 and 1000, got {list(boundaries)}")
        self.boundaries = [float(b) for b in boundaries]
        segments = len(boundaries) + 1
        self.inner = nn.ModuleList(router(hidden_size=hidden_size) for _ in range(segments) if router)
        if not all(r.within_timestep for r in self.routers):
            raise ValueError(
                f"the router within timestep must send each token to plain experts, with nothing beside them "
                f"(`within_timestep = True` in its class), got {type(self.routers[0]).__name__}"
            )
        self.per_segment = self.routers[0].num_experts if router else 1
        self.num_experts = segments * self.per_segment
        self.active = self.routers[0].active if router else 1.0
        self.competes = any(r.competes for r in self.routers)

    @property
    def routers(self) -> list[Any]:
        """Those within the segments, none if it stands alone."""
        return list(self.inner)

    @property
    def weights_sum_to_one(self) -> bool:
        return all(router.weights_sum_to_one for router in self.routers)

    def bind(self, place: Place) -> None:
        for router in self.routers:
            router.bind(place)
        if self.routers:
            self.active = self.routers[0].active

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> Routing:
        if (
            x.is_meta and self.routers
        ):  # times without values: all in one segment, whose router is like the others
            return self.routers[0](x, context)
        edges = torch.tensor(self.boundaries, device=x.device, dtype=context.t.dtype)
        segment = torch.bucketize(context.t, edges, right=True)
        if self.routers:
            return self._within(x, context, segment)
        num_tokens = x.shape[0] * x.shape[1]
        token = torch.arange(num_tokens, device=x.device)
        expert = segment.flatten()[context.layout.row_of(token, segment.shape)]
        scores = torch.nn.functional.one_hot(expert, self.num_experts).float()
        return Routing(token, expert, torch.ones(num_tokens, device=x.device), scores)

    def _within(self, x: Float[Tensor, "R N D"], context: Context, segment: Int[Tensor, "*t"]) -> Routing:
        num_tokens, layout = x.shape[0] * x.shape[1], context.layout
        token = torch.arange(num_tokens, device=x.device)
        of_token = segment.flatten()[layout.row_of(token, segment.shape)]
        if segment.ndim == 1:
            sizes = self.pool.total(torch.bincount(segment, minlength=len(self.routers))).tolist()
        else:
            share = 1 / torch.tensor(layout.lengths, device=x.device)[layout.sample_of(token)]
            sizes = self.pool.total(share.new_zeros(len(self.routers)).index_add(0, of_token, share)).tolist()
        parts = []
        for index, router in enumerate(self.routers):
            own = (of_token == index).nonzero()[:, 0]
            if len(own) or (
                sizes[index] and router.uses_collectives
            ):  # who has none still answers the other ranks
                here = (segment == index).nonzero()[:, 0] if segment.ndim == 1 else None
                parts.append((index, own, router(*_part(x, context, own, here))))
        scores = x.new_zeros(num_tokens, len(self.routers), self.per_segment, dtype=torch.float32)
        for index, own, r in parts:
            scores[own, index] = r.scores
        aux_predictions = [(own, r.aux_prediction) for _, own, r in parts if r.aux_prediction is not None]
        return Routing(
            torch.cat([own[r.token] for _, own, r in parts]),
            torch.cat([r.expert + index * self.per_segment for index, _, r in parts]),
            torch.cat([r.weight for _, _, r in parts]),
            scores.flatten(1),
            _merged([(sizes[index] / sum(sizes), r.losses) for index, _, r in parts]),
            {f"{index}/{name}": value for index, _, r in parts for name, value in r.batch_stats.items()},
            sum(dropped) if (dropped := [r.dropped for *_, r in parts if r.dropped is not None]) else None,
            _scattered(aux_predictions, x.shape[:2]) if aux_predictions else None,
            max(r.aux_coefficient for *_, r in parts),
        )

    def before_pass(self, earlier: Sequence[Mapping[str, Tensor]]) -> None:
        for index, router in enumerate(self.routers):
            router.before_pass(_of_segment(index, earlier))

    def update(self, batch_stats: Sequence[Mapping[str, Tensor]]) -> None:
        for index, router in enumerate(self.routers):
            if own := _of_segment(index, batch_stats):
                router.update(own)


def _of_segment(index: int, batch_stats: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What the router of a segment observed, in the passes in which it had tokens."""
    prefix = f"{index}/"
    own = [{k[len(prefix) :]: v for k, v in o.items() if k.startswith(prefix)} for o in batch_stats]
    return [o for o in own if o]


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


def _part(
    x: Float[Tensor, "R N D"], context: Context, own: Int[Tensor, " T"], here: Int[Tensor, " b"] | None
) -> tuple[Float[Tensor, "r n D"], Context]:
    """Some tokens, and what is known beside them: those of some samples, where `here` tells which, or any."""
    layout = context.layout
    x, unmodulated = (rows.flatten(0, 1)[own][None] for rows in (x, context.unmodulated))
    if here is None:
        counts = torch.bincount(layout.sample_of(own), minlength=len(layout.grids)).tolist()
        return x, replace(context, layout=layout.only(own, counts), unmodulated=unmodulated)
    if not layout.packed:
        x, unmodulated = (rows[0].unflatten(0, (-1, layout.lengths[0])) for rows in (x, unmodulated))
    t, time, c = (values[here] for values in (context.t, context.time, context.c))
    asked = context.asked and context.asked.take(here)
    return x, Context(t, time, c, layout.take(here.tolist()), unmodulated, asked)


def _scattered(
    aux_predictions: Sequence[tuple[Tensor, Tensor]], size: Sequence[int]
) -> Float[Tensor, "R N Q"]:
    features = aux_predictions[0][1].shape[-1]
    whole = aux_predictions[0][1].new_zeros(size[0] * size[1], features)
    for own, aux_prediction in aux_predictions:
        whole = whole.index_copy(0, own, aux_prediction.flatten(0, 1))
    return whole.view(*size, features)
