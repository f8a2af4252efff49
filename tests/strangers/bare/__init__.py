"""The smallest modality: the core of the contract, and nothing beside it."""

from typing import Any, ClassVar

import numpy as np
import torch

from ditmoe.modality import Modality, Tokens
from ditmoe.nn import Layout


class Numbers(Tokens):
    """Each number is a token."""

    in_features = out_features = axes = 1

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def grid(self, x: torch.Tensor) -> tuple[int, ...]:
        return (x.shape[1],)

    def patchify(self, x: torch.Tensor, layout: Layout) -> torch.Tensor:
        return x[..., None]

    def positions(self, layout: Layout) -> torch.Tensor:
        return torch.nn.functional.one_hot(layout.cells[:, 0] % self.hidden_size, self.hidden_size).float()

    def unpatchify(
        self, tokens: torch.Tensor, layout: Layout, like: torch.Tensor, t: torch.Tensor, c: torch.Tensor
    ) -> torch.Tensor:
        return tokens[..., 0]


class Bare(Modality):
    """Four numbers that are nearly equal."""

    name: ClassVar[str] = "bare"
    classes = ("low", "high")
    sample_shape = (4,)

    def __init__(self, data_facts: dict[str, Any] | None = None) -> None:
        pass

    def data_facts(self) -> dict[str, Any]:
        return {}

    def tokens(self, hidden_size: int) -> Tokens:
        return Numbers(hidden_size)

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own = slice(rank * size, (rank + 1) * size)
        labels = torch.arange(size * world) % 2
        noise = torch.from_numpy(
            np.random.default_rng([seed, step]).normal(0, 0.1, (size * world, 4))
        ).float()
        return (labels[:, None] * 2.0 - 1 + noise)[own], labels[own]

    def decode(self, x: torch.Tensor) -> np.ndarray:
        return x.numpy()
