"""Numbers that others' reference code computed, see README.md."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent
STRIDE = 101


class Numbers(dict[str, np.ndarray]):
    """Arrays by name, as `numpy.load` gives them."""

    @property
    def files(self) -> list[str]:
        return list(self)


def load(name: str) -> Numbers:
    """The arrays of a file, and the weights that its reference ran with, drawn again.

    Raises:
        ValueError: if this PyTorch draws other numbers than those.
    """
    with np.load(FOLDER / name, allow_pickle=False) as stored:
        numbers = Numbers({key: stored[key] for key in stored.files})
    if "weights" in numbers:
        drawn = dict(draw(json.loads(numbers.pop("weights").item())))
        some = np.concatenate([value.ravel() for value in drawn.values()])[::STRIDE]
        if not np.allclose(some, numbers.pop("every_101st"), rtol=0, atol=1e-6):
            raise ValueError(f"{name}: this PyTorch does not draw the weights that the reference ran with")
        numbers.update(drawn)
    return numbers


def draw(recipe: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Weights one after the other from one generator, each shift + scale N(0, 1)."""
    generator = torch.Generator().manual_seed(recipe["seed"])
    for name, shape, scale, shift in recipe["draws"]:
        yield name, (torch.randn(shape, generator=generator) * scale + shift).numpy()
