"""Where along the noise the loss sits, which tells more than its mean: sums in bins of time, kept on the device."""

import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.diffusion import HORIZON, Losses

BINS = 10


def sums_by_time(losses: Losses) -> Float[Tensor, "2 bins"]:
    """Of each bin the sum of the loss over its numbers, and how many these are."""
    t, each, counted = (x.flatten() for x in (losses.t, losses.each, losses.counted))
    index = (t * (BINS / HORIZON)).long().clamp(0, BINS - 1)
    here = index == torch.arange(BINS, device=t.device)[:, None]
    values = torch.stack([each * counted, counted]).double()
    return torch.where(here, values[:, None], 0).sum(-1)  # not by an index, which a GPU adds up in any order


def means_by_time(sums: Float[Tensor, "2 bins"]) -> dict[str, float | None]:
    """Names and values for the log; None where no sample had such a time."""
    width = HORIZON // BINS
    return {
        f"loss_by_time/{width * i:03d}-{width * (i + 1):03d}": total / count if count else None
        for i, (total, count) in enumerate(sums.T.tolist())
    }
