"""Control routers, not for use: what a comparison of routers must be measured against."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe import Context, Experts, Place, Routing, TokenChoice
from ditmoe.moe.router import project
from ditmoe.moe.time_aware import GridConvolution, check_kernel


class ConvolvedChoice(TokenChoice):
    """Token choice with the convolution of `TimeAware` beside it; with one expert a dense layer with it.

    What a router that brings a convolution wins by its experts is what it wins over this.
    """

    def __init__(
        self, hidden_size: int, num_experts: int, top_k: int, kernel: int = 3, **options: Any
    ) -> None:
        super().__init__(hidden_size, num_experts, top_k, **options)
        check_kernel(kernel)
        self.kernel, self.axes = kernel, 1

    def bind(self, place: Place) -> None:
        self.axes = place.axes

    def branch(self, hidden_size: int) -> nn.Module | None:
        return GridConvolution(hidden_size, self.kernel, self.axes)


class RandomChoice(TokenChoice):
    """Each token's K experts are drawn by a hash of the token, with weights 1 / K: as many parameters, no choice.

        s_e = |frac(10^4 sin(10^4 d_e x))|,   chosen: the K largest

    A function of the token alone, so that nothing is drawn in the model; the directions d never learn. What a router
    wins over this it wins by choosing.
    """

    directions: Tensor

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, **options: Any) -> None:
        super().__init__(hidden_size, num_experts, top_k, **options)
        del self.weight
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(num_experts, hidden_size, generator=generator, device="cpu") / hidden_size**0.5
        self.register_buffer("directions", drawn)

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> Routing:
        tokens = x.detach().flatten(0, 1)
        scores = (1e4 * (1e4 * project(tokens, self.directions)).sin()).frac().abs()
        expert = scores.topk(self.top_k, dim=-1).indices.flatten()
        token = torch.arange(len(tokens), device=x.device).repeat_interleave(self.top_k)
        weight = torch.full_like(token, 1 / self.top_k, dtype=torch.float32)
        return Routing(token, expert, weight, scores)


class OneExpert(TokenChoice):
    """Token choice among copies of one expert, which stay copies: the router may weigh, but has nothing to choose.

    What token choice wins over this it wins by experts that differ.
    """

    def experts(self, hidden_size: int, inner: int, activation: str) -> Experts:
        return Copies(self.num_experts, hidden_size, inner, activation)


class Copies(Experts):
    """One expert under many numbers."""

    def __init__(self, num_experts: int, hidden_size: int, inner: int, activation: str) -> None:
        super().__init__(1, hidden_size, inner, activation)
        self.copies = num_experts

    def local_weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        up, down, up_bias, down_bias = super().local_weights()

        def each(weights: Tensor) -> Tensor:
            return weights.expand(self.copies, *weights.shape[1:])

        biases = (None if b is None else each(b) for b in (up_bias, down_bias))
        return each(up), each(down), *biases
