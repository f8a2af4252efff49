"""Embedding of a sampling step's length and guidance scale, for models distilled for few steps."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.conditioning import GUIDANCE, SPAN
from ditmoe.diffusion import check_most_steps
from ditmoe.nn import Layout, TimestepEmbedding
from ditmoe.outside import check_number

PER_UNIT = 100.0
"""Factor from guidance scales to the range of times that the sinusoids are made for."""


class StepEmbedding(nn.Module):
    """Adds embeddings of `Condition.step` to the conditioning, each made like that of the timestep.

    Zero-initialised: adding one to a model changes nothing at first, for any span and scale. Without `Condition.step`
    the span is zero and the scale one, so that the model predicts the plain conditional velocity.

    Args:
        flow_map: embed the length t - r of a step: the model predicts the mean velocity from t to r
            (`ditmoe.diffusion.few_steps`), for sampling with up to this many steps, a power of two; None: do not.
        guidance: range of classifier-free guidance scales that are embedded (arXiv 2210.03142, section 3); None leaves
            guidance to the sampler.

    Raises:
        ValueError: if there is nothing to embed, or the range is invalid.
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
        """The vectors to add to the timestep embeddings, one per time."""
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
        """Zero both embeddings; called without gradient."""
        for embedding in (self.span, self.guidance):
            if embedding is not None:
                nn.init.zeros_(embedding.second.weight)


def check_weights(name: str, weights: Sequence[float]) -> tuple[float, float]:
    """Validate a range of guidance scales.

    Raises:
        ValueError: unless it is two numbers in ascending order.
    """
    if not isinstance(weights, list | tuple) or len(weights) != 2:
        raise ValueError(f"{name} must be two weights, such as [1, 4], got {weights!r}")
    low, high = weights
    check_number(f"the first of {name}", low, 0, 100)
    check_number(f"the second of {name}", high, low, 100)
    return float(low), float(high)
