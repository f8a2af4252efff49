"""A second kind of conditioning, as small as one can be: some numbers, which become a vector and a few tokens.

Nothing of trainer, sampler, pipeline and modalities knows of it: a class and data that give its values are all.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ditmoe.conditioning import Condition, Conditioning, Embedded
from ditmoe.modality import Asked, Samples
from modalities.pointcloud import PointCloud


class Numbers(Conditioning):
    """`size` numbers of each sample: their sum of vectors modulates, and each is a token as well.

    As many tokens as there are numbers, and one more that is always there; numbers that are none (NaN) are masked.
    """

    words: ClassVar[Mapping[str, str]] = {"numbers": "a list of numbers, the same for all samples"}
    gives_tokens = True

    def __init__(self, hidden_size: int, num_classes: int, size: int = 3) -> None:
        super().__init__(num_classes)
        self.size = size
        self.vector = nn.Linear(size, hidden_size)
        self.of_one = nn.Linear(1, hidden_size)
        self.table = nn.Parameter(torch.empty(size + 1, hidden_size))

    def forward(self, condition: Condition) -> Embedded:
        given = condition.values["numbers"]
        there = given.isfinite() & ~condition.null[:, None]
        numbers = torch.where(there, given, 0)
        tokens = torch.cat([torch.zeros_like(numbers[:, :1]), numbers], dim=1)[..., None]
        mask = torch.cat([torch.ones_like(there[:, :1]), there], dim=1)
        return Embedded(self.vector(numbers), condition.null, self.of_one(tokens) + self.table, mask)

    def nothing(self, num: int) -> Condition:
        return Condition({"numbers": torch.zeros(num, self.size)}, torch.ones(num, dtype=torch.bool))

    def ask(
        self, num: int, classes: Sequence[str], generator: torch.Generator | None = None, **words: Any
    ) -> Condition:
        if (numbers := words.get("numbers")) is None:
            return self.nothing(num)
        if len(numbers) != self.size:
            raise ValueError(f"numbers must be {self.size}, got {len(numbers)}")
        values = torch.tensor([numbers] * num, dtype=torch.float32)
        return Condition({"numbers": values}, torch.zeros(num, dtype=torch.bool))

    @torch.no_grad()
    def initialize(self) -> None:
        nn.init.normal_(self.table, std=0.02)


def measured(points: Float[Tensor, "B M 3"], labels: Int[Tensor, " B"]) -> Condition:
    """What each cloud is: how far it reaches along each axis, beside its class."""
    reach = points.amax(1) - points.amin(1)
    return Condition({"label": labels, "numbers": reach}, torch.zeros(len(points), dtype=torch.bool))


class Measured(PointCloud):
    """Clouds whose data say how large they are."""

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B M 3"], Asked]:
        points, labels = super().batch(size, seed, step, rank, world)
        return points, measured(points, labels)

    def reference(self, split: str) -> Samples:
        real = super().reference(split)
        asked = measured(torch.from_numpy(real.data), torch.from_numpy(real.labels))
        return Samples(real.data, real.labels, real.names, asked)
