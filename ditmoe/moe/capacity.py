"""Expert capacity: how it depends on the noise level and on the training step."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe.router import Context
from ditmoe.outside import check_number


class Sparsified(nn.Module):
    """Schedule of experts per token: all E until the first step, then linearly down to the target at the last step.

        c(step) = E + (c - E) min(1, max(0, (step - first) / (last - first)))

    Progressive sparsification (Nucleus-Image, arXiv 2604.12163; also in DiffMoE's code). The step is part of the
    router's state, so that sampling meanwhile uses as many experts as training. Reading it synchronises with a GPU.

    Raises:
        ValueError: unless the steps are two ascending whole numbers.
    """

    step: Tensor

    def __init__(self, num_experts: int, steps: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(steps, Sequence) or isinstance(steps, str) or len(steps) != 2:
            raise ValueError(f"sparsify must be two steps, the first and the last, got {steps!r}")
        for step in steps:
            check_number("sparsify", step, 0, whole=True)
        self.first, self.last = steps
        if not self.first < self.last:
            raise ValueError(f"sparsify must be two steps that ascend, got {list(steps)}")
        self.num_experts = num_experts
        self.register_buffer("step", torch.zeros(()))

    def forward(self, aim: float) -> float:
        """Experts per token at the current step."""
        share = (self.step.item() - self.first) / (self.last - self.first)
        return self.num_experts + (aim - self.num_experts) * min(1.0, max(0.0, share))

    @torch.no_grad()
    def update(self) -> None:
        """Count a step."""
        self.step += 1


def by_time(slope: float, context: Context) -> Float[Tensor, " T"]:
    """Factor on the capacity for each token's sample, 1 + slope (1 - 2 t / 1000); t is the mean over its tokens.

    Its mean over noise levels is one: it redistributes compute, with a positive slope to clean samples (best in arXiv
    2604.01622, for text diffusion).
    """
    layout = context.layout
    token = torch.arange(sum(layout.lengths), device=layout.device)
    t = context.t.float().flatten()[layout.row_of(token, context.t.shape)]
    sums = t.new_zeros(len(layout.grids), 2).index_add(
        0, layout.sample, torch.stack([t, torch.ones_like(t)], -1)
    )
    mean = sums[:, 0] / sums[:, 1].clamp_min(1)
    return (1 + slope * (1 - mean / 500))[layout.sample]
