"""What a model is told of a sampler's step, where few steps are to do: how far it leads, and with which guidance."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.conditioning import GUIDANCE, SPAN
from ditmoe.diffusion import check_most_steps
from ditmoe.nn import Layout, TimestepEmbedding
from ditmoe.outside import check_number

PER_UNIT = 100.0
"""Of guidance, in the units of times, to which the sinusoids are made."""


class StepEmbedding(nn.Module):
    """Adds to the conditioning what `Condition.step` says, each through an embedding as that of the time.

    It starts at zero: a model that gets one is, at every span and weight, what it was without. Where `Condition.step`
    says nothing the span is zero and the weight one, so that the model gives the velocity of what is asked for.

    Args:
        flow_map: embed the time t - r that a step leads over: the model predicts the mean velocity on the way from t
            to r (`ditmoe.diffusion.few_steps`), for drawings of up to so many steps, a power of two; None: do not.
        guidance: range of weights of classifier-free guidance that are embedded (arXiv 2210.03142, section 3); None
            leaves guidance to the sampler.

    Raises:
        ValueError: if there is nothing to embed, or the range is none.
    """

    def __init__(self, hidden_size: int, flow_map: int | None, guidance: Sequence[float] | None) -> None:
        super().__init__()
        self.weights = None if guidance is None else check_weights("model.guidance", guidance)
        self.most_steps = None if flow_map is None else check_most_steps("model.flow_map", flow_map)
        self.span = TimestepEmbedding(hidden_size) if flow_map is not None else None
        self.guidance = TimestepEmbedding(hidden_size, scale=PER_UNIT) if guidance is not None else None

    def forward(
        self, step: Mapping[str, Tensor], t: Float[Tensor, "*t"], layout: Layout
    ) -> Float[Tensor, "*t D"]:
        """What is to be added beside the time: one vector for each time."""
        added: Tensor | float = 0.0
        if self.span is not None:
            span = step.get(SPAN, torch.zeros_like(t))
            added = self.span(span.flatten()).unflatten(0, t.shape)
        if self.guidance is not None:
            weight = step.get(GUIDANCE, t.new_ones(len(layout.grids)))
            added = added + layout.beside_times(self.guidance(weight), t.shape)
        assert isinstance(added, Tensor)
        return added

    def initialize(self) -> None:
        """Both start at zero; called without gradient."""
        for embedding in (self.span, self.guidance):
            if embedding is not None:
                nn.init.zeros_(embedding.second.weight)


def check_weights(name: str, weights: Sequence[float]) -> tuple[float, float]:
    """A range of guidance.

    Raises:
        ValueError: unless it is two numbers, the first at most the second.
    """
    if not isinstance(weights, list | tuple) or len(weights) != 2:
        raise ValueError(f"{name} must be two weights, such as [1, 4], got {weights!r}")
    low, high = weights
    check_number(f"the first of {name}", low, 0, 100)
    check_number(f"the second of {name}", high, low, 100)
    return float(low), float(high)
