"""Random masks of given places for training: frames of a clip, or tokens of any grid.

By frame (first axis): the head 35 %, the tail 25 %, both ends 20 %, scattered frames 20 %. By token: all outside of a
box 40 %, all inside one 30 %, one side 20 %, scattered tokens 10 %.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

BY_FRAME, BY_TOKEN = "frame", "token"


def draw_places(grid: Sequence[int], per: str, rng: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """Draw the mask of one sample's given places, neither empty nor full: along the first axis, or over all tokens."""
    if per == BY_TOKEN:
        return _tokens(tuple(grid), rng).flatten()
    return _along(grid[0], rng)


def _along(num: int, rng: np.random.Generator) -> Bool[np.ndarray, " n"]:
    given, kind = np.zeros(num, bool), rng.random()
    if num == 1:
        return given
    if kind < 0.8:
        head, tail = sorted(rng.integers(1, num, 2)) if num > 2 else (1, 1)
        if kind < 0.35 or num == 2:
            given[: rng.integers(1, num)] = True
        elif kind < 0.6:
            given[rng.integers(1, num) :] = True
        else:
            given[:head], given[max(head + 1, tail) :] = True, True
        return given
    return _scattered(num, rng)


def _tokens(grid: tuple[int, ...], rng: np.random.Generator) -> Bool[np.ndarray, "..."]:
    kind, num = rng.random(), math.prod(grid)
    if num == 1:
        return np.zeros(grid, bool)
    if kind >= 0.9:
        return _scattered(num, rng).reshape(grid)
    if kind >= 0.7:
        axis = int(rng.choice([i for i, n in enumerate(grid) if n > 1]))
        side = np.arange(grid[axis]) < rng.integers(1, grid[axis])
        given = np.broadcast_to(
            (side if rng.random() < 0.5 else ~side).reshape(
                [-1 if i == axis else 1 for i in range(len(grid))]
            ),
            grid,
        ).copy()
        return given
    box = np.ones(grid, bool)
    for axis, n in enumerate(grid):
        length = rng.integers(1, n + 1)
        start = rng.integers(0, n - length + 1)
        inside = (np.arange(n) >= start) & (np.arange(n) < start + length)
        box &= inside.reshape([-1 if i == axis else 1 for i in range(len(grid))])
    given = ~box if kind < 0.4 else box
    return given if given.any() and not given.all() else _scattered(num, rng).reshape(grid)


def _scattered(num: int, rng: np.random.Generator) -> Bool[np.ndarray, " n"]:
    given = rng.random(num) < 0.2 + 0.6 * rng.random()
    given[rng.integers(num)] = False
    return given
