"""First-block cache: skip later blocks for samples whose first-block residual hardly changes (`nn.FirstBlockCache`)."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ditmoe.moe import Context
from ditmoe.nn import FirstBlockCache


def through_cached(
    blocks: Iterable[nn.Module],
    h: Float[Tensor, "B N D"],
    context: Context,
    angles: Float[Tensor, "N half"] | None,
    cache: FirstBlockCache,
) -> Float[Tensor, "B N D"]:
    """Apply all blocks, or for samples that hit the cache the first block and the cached residual of the others.

    Raises:
        ValueError: if samples have different numbers of tokens.
    """
    if context.layout.packed:
        raise ValueError(
            "first_block_cache must be 0 where samples do not all have the same number of tokens, as with kept=occupied"
        )
    first, *others = blocks
    after, _ = first(h, context, context.c, angles)
    change = after - h
    rows = cache.stale(change)
    if not rows:
        return after + cache.rest
    whole = len(rows) == len(h)
    there = torch.tensor(rows).to(h.device, non_blocking=True)
    part, own = (after, context) if whole else (after[there], of_samples(context, rows, there))
    end = part
    for block in others:
        end, _ = block(end, own, own.c, angles)
    cache.keep(there, change, end - part)
    if whole:
        return end
    return (after + cache.rest).index_copy(0, there, end.to(after.dtype))


def of_samples(context: Context, rows: list[int], there: Int[Tensor, " b"]) -> Context:
    """The context of selected samples of a batch, whose indices are given on the host and on the device."""
    t, time, c, unmodulated = (x[there] for x in (context.t, context.time, context.c, context.unmodulated))
    asked = None if context.asked is None else context.asked.take(there)
    t_on_host = None if context.t_on_host is None else context.t_on_host[rows]
    return Context(t, time, c, context.layout.take(rows), unmodulated, asked, t_on_host)
