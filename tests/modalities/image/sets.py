"""Images that are drawn: waves in the colour of their class."""

import numpy as np

from ditmoe.modality import Samples


def images(num: int, seed: int = 0, size: int = 16, noise: float = 20, classes: int = 3) -> Samples:
    """Waves of random phase in the colour of their class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=num)
    colour = np.eye(3)[labels % 3][:, None, None] * 180 + 40
    wave = 0.7 + 0.3 * np.sin(np.linspace(0, 6, size)[:, None] + rng.uniform(0, 6, (num, 1, 1, 1)))
    data = colour * wave + rng.normal(0, noise, (num, size, size, 3))
    return Samples(data.clip(0, 255).astype(np.uint8), labels)
