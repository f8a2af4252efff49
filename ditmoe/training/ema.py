"""Exponential moving average of the weights, used for sampling."""

import copy

import torch
from torch import nn

from ditmoe.distributed import local


class EMA:
    """Exponential moving average of a model's parameters; buffers are copied from the latest step.

        e <- d e + (1 - d) w,   d = min(decay, (1 + step) / (10 + step))

    The warm-up of d lets a short run forget its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update with the weights after step `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        means, weights = ([local(p) for p in m.parameters()] for m in (self.model, model))
        torch._foreach_lerp_(means, weights, 1 - decay)
        for mean, latest in zip(self.model.buffers(), model.buffers(), strict=True):
            mean.copy_(latest)
