"""The loss by noise level, which tells more than its mean: sums in bins of time, kept on the device."""

import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.diffusion import HORIZON, Losses

BINS = 10


def sums_by_time(losses: Losses) -> Float[Tensor, "2 bins"]:
    """For each bin, the sum of the loss over its values, and their number."""
    t, each, counted = (x.flatten() for x in (losses.t, losses.each, losses.counted))
    index = (t * (BINS / HORIZON)).long().clamp(0, BINS - 1)
    here = index == torch.arange(BINS, device=t.device)[:, None]
    values = torch.stack([each * counted, counted]).double()
    return torch.where(here, values[:, None], 0).sum(-1)  # not index_add: on a GPU its order varies


def means_by_time(sums: Float[Tensor, "2 bins"]) -> dict[str, float | None]:
    """Names and values for the log; None for bins without samples."""
    width = HORIZON // BINS
    return {
        f"loss_by_time/{width * i:03d}-{width * (i + 1):03d}": total / count if count else None
        for i, (total, count) in enumerate(sums.T.tolist())
    }
