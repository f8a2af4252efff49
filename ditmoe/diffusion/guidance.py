"""Guidance: steering predictions away from those of the null condition, of a negative prompt, or of a weaker model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.conditioning import Condition
from ditmoe.nn import FirstBlockCache


class View(NamedTuple):
    """Inputs of a model: noisy samples, times and conditions."""

    x: Float[Tensor, "B *sample"]
    t: Float[Tensor, "B *f"]
    asked: Condition


@dataclass(frozen=True)
class Network:
    """A model as called by the sampler: predicts several views in one batch, and drops a learnt variance.

    Attributes:
        cache: first-block cache of this sampling run; None: compute everything.
    """

    model: Any
    cache: FirstBlockCache | None = None

    @staticmethod
    def of(model: Any, first_block_cache: float) -> "Network":
        """Make one for a sampling run; a threshold of 0: no cache."""
        return Network(model, FirstBlockCache(first_block_cache) if first_block_cache else None)

    def __call__(self, views: Sequence[View]) -> Sequence[Float[Tensor, "B *sample"]]:
        x, t, asked = views[0]
        if len(views) > 1:
            xs, ts, each = zip(*views, strict=True)
            x, t, asked = torch.cat(xs), torch.cat(ts), Condition.cat(each)
        reused = {} if self.cache is None else {"cache": self.cache}
        output = self.model(x, t, asked, **reused)[0][:, : x.shape[1]]
        return output.chunk(len(views)) if len(views) > 1 else [output]


def guided(
    network: Network,
    view: View,
    guidance: float,
    negative: Condition | None = None,
    hidden: View | None = None,
    given_guidance: float = 1.0,
    weaker: Network | None = None,
) -> Float[Tensor, "B *sample"]:
    """The prediction c of a view with both kinds of guidance, u + guidance (c - u) + (given_guidance - 1) (c - h).

    Args:
        negative: the condition of u; None: the null condition.
        hidden: the same view with the given parts hidden, of which h is the prediction; None: no guidance by them.
        weaker: predicts u from the same view, in place of the network (autoguidance, arXiv 2406.02070, eq. 2).
    """
    x, t, asked = view
    views = [view]
    if guidance != 1.0 and weaker is None:
        away = asked.nothing if negative is None else replace(negative, given=asked.given)
        views.append(View(x, t, away))
    if hidden is not None:
        views.append(hidden)
    shown, *others = network(views)
    led = shown
    if guidance != 1.0:
        base = others[0] if weaker is None else weaker([view])[0]
        led = base + guidance * (shown - base)
    return led if hidden is None else led + (given_guidance - 1) * (shown - others[-1])
