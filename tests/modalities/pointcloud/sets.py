"""Clouds that are drawn: points in a box, and shapes that differ from each other."""

import numpy as np


def clouds(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, (*shape, 3))


def shapes(seed: int, num: int, points: int = 64) -> np.ndarray:
    """Ellipsoid shells: shapes that differ from each other more than two draws of one do."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(num, points, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return directions * rng.uniform(0.1, 0.4, (num, 1, 3))


def sphere(count: int = 1000, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.diag(r))
