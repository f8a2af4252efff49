"""Timestep experts: each noise segment has its own experts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ditmoe.moe.router import Context, Place, Router
from ditmoe.moe.routing import Loss, Routing
from ditmoe.nn import from_host


class TimestepExperts(Router):
    """A token's time selects one of S = len(boundaries) + 1 sets of experts; a token router, if any, chooses within.

    Wan 2.2 has two experts, one above t = 875 and one below; eDiff-I (arXiv 2211.01324) and related models have more.
    All are trained in one run, on the samples in their segment; of a sample with several times, on the tokens in the
    segment, which the inner router treats as a sample. Segment s spans boundaries[s-1] <= t < boundaries[s].

    Attention and shared experts are common to all segments; with `model.shared_ratio=0` feed-forward layers are
    entirely per segment. An inner router has experts, weights, losses and thresholds per segment, and its losses are
    weighted by the share of the samples (within a sample, of its tokens). The segments are found on the host, which
    knows the times (`reads_times`).

    Args:
        boundaries: times (0 data, 1000 noise) at which the experts change, ascending.
        router: makes the inner router of a segment; None sends all tokens to the segment's one expert, weight 1.

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
        self.reads_times = bool(self.inner)

    @property
    def routers(self) -> list[Any]:
        """The inner routers, if any."""
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
        # Times without values: assign all tokens to one segment; the routers of all are alike.
        if x.is_meta and self.routers:
            return self.routers[0](x, context)
        if self.routers:
            t = context.times_on_host()
            return self._within(x, context, np.searchsorted(np.array(self.boundaries, t.dtype), t, "right"))
        edges = from_host(np.array(self.boundaries), x.device).to(context.t.dtype)
        segment = torch.bucketize(context.t, edges, right=True)
        num_tokens = x.shape[0] * x.shape[1]
        token = torch.arange(num_tokens, device=x.device)
        expert = segment.flatten()[context.layout.row_of(token, segment.shape)]
        scores = torch.nn.functional.one_hot(expert, self.num_experts).float()
        return Routing(token, expert, torch.ones(num_tokens, device=x.device), scores)

    def _within(self, x: Float[Tensor, "R N D"], context: Context, segment: Int[np.ndarray, "*t"]) -> Routing:
        num_tokens, layout = x.shape[0] * x.shape[1], context.layout
        of_token = segment.flatten()[layout.rows_on_host(segment.shape)]
        if segment.ndim == 1:
            shares = np.bincount(segment, minlength=len(self.routers))
        else:
            lengths = np.array(layout.lengths)
            shares = np.zeros(len(self.routers), np.float32)
            np.add.at(shares, of_token, (np.float32(1) / lengths.astype(np.float32)).repeat(lengths))
        if self.pool.size > 1:
            shares = self.pool.total(torch.from_numpy(shares).to(x.device)).cpu().numpy()
        sizes, parts = shares.tolist(), []
        for index, router in enumerate(self.routers):
            own = np.flatnonzero(of_token == index)
            # A router without local tokens still takes part in collectives.
            if len(own) or (sizes[index] and router.uses_collectives):
                here = np.flatnonzero(segment == index) if segment.ndim == 1 else None
                part, there = _part(x, context, own, here)
                parts.append((index, there, router(*part)))
        scores = x.new_zeros(num_tokens, len(self.routers), self.per_segment, dtype=torch.float32)
        for index, there, r in parts:
            scores[there, index] = r.scores
        aux_predictions = [(own, r.aux_prediction) for _, own, r in parts if r.aux_prediction is not None]
        padded = any(r.padded for *_, r in parts)
        return Routing(
            torch.cat([_numbered(r, own, num_tokens) for _, own, r in parts]),
            torch.cat([self._expert(r, index) for index, _, r in parts]),
            torch.cat([r.weight for _, _, r in parts]),
            scores.flatten(1),
            _merged([(sizes[index] / sum(sizes), r.losses) for index, _, r in parts]),
            {f"{index}/{name}": value for index, _, r in parts for name, value in r.batch_stats.items()},
            sum(dropped) if (dropped := [r.dropped for *_, r in parts if r.dropped is not None]) else None,
            _scattered(aux_predictions, x.shape[:2]) if aux_predictions else None,
            max(r.aux_coefficient for *_, r in parts),
            padded,
        )

    def _expert(self, routing: Routing, index: int) -> Int[Tensor, " A"]:
        """The experts of a segment's routing, as indices over all segments."""
        expert = routing.expert + index * self.per_segment
        return expert.where(routing.expert < self.per_segment, self.num_experts) if routing.padded else expert

    def before_pass(self, earlier: Sequence[Mapping[str, Tensor]]) -> None:
        for index, router in enumerate(self.routers):
            router.before_pass(_of_segment(index, earlier))

    def update(self, batch_stats: Sequence[Mapping[str, Tensor]]) -> None:
        for index, router in enumerate(self.routers):
            if own := _of_segment(index, batch_stats):
                router.update(own)


def _of_segment(index: int, batch_stats: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The statistics of a segment's router, from the passes in which it had tokens."""
    prefix = f"{index}/"
    own = [{k[len(prefix) :]: v for k, v in o.items() if k.startswith(prefix)} for o in batch_stats]
    return [o for o in own if o]


def _merged(parts: Sequence[tuple[float, Mapping[str, Loss]]]) -> dict[str, Loss]:
    """Losses by name, weighted by the share of the samples."""
    merged: dict[str, Loss] = {}
    for share, losses in parts:
        for name, loss in losses.items():
            value, coefficient = share * loss.value, loss.coefficient
            if isinstance(coefficient, Tensor):  # adaptive, so it may differ
                value, coefficient = value * coefficient, 1.0
            merged[name] = Loss(merged[name].value + value if name in merged else value, coefficient)
    return merged


def _numbered(routing: Routing, own: Int[Tensor, " T_own"], num_tokens: int) -> Int[Tensor, " A"]:
    """The tokens of a segment's routing, as indices in the batch."""
    own = torch.nn.functional.pad(own, (0, 1), value=num_tokens) if routing.padded else own
    return own[routing.token]


def _part(
    x: Float[Tensor, "R N D"],
    context: Context,
    own: Int[np.ndarray, " T"],
    here: Int[np.ndarray, " b"] | None,
) -> tuple[tuple[Float[Tensor, "r n D"], Context], Int[Tensor, " T"]]:
    """Select tokens with their context: whole samples if `here` gives their indices, else any tokens.

    Also returns the indices of these tokens, on their device.
    """
    layout, there = context.layout, from_host(own, x.device)
    x, unmodulated = (rows.flatten(0, 1)[there][None] for rows in (x, context.unmodulated))
    if here is None:
        sample = np.arange(len(layout.grids)).repeat(layout.lengths)[own]
        counts = np.bincount(sample, minlength=len(layout.grids)).tolist()
        return (x, replace(context, layout=layout.only(there, counts), unmodulated=unmodulated)), there
    if not layout.packed:
        x, unmodulated = (rows[0].unflatten(0, (-1, layout.lengths[0])) for rows in (x, unmodulated))
    samples = from_host(here, x.device)
    t, time, c = (values[samples] for values in (context.t, context.time, context.c))
    asked = context.asked and context.asked.take(samples)
    t_on_host = None if context.t_on_host is None else context.t_on_host[here]
    return (x, Context(t, time, c, layout.take(here.tolist()), unmodulated, asked, t_on_host)), there


def _scattered(
    aux_predictions: Sequence[tuple[Tensor, Tensor]], size: Sequence[int]
) -> Float[Tensor, "R N Q"]:
    features = aux_predictions[0][1].shape[-1]
    whole = aux_predictions[0][1].new_zeros(size[0] * size[1], features)
    for own, aux_prediction in aux_predictions:
        whole = whole.index_copy(0, own, aux_prediction.flatten(0, 1))
    return whole.view(*size, features)
