"""Patches and positions: inverses, and the published tables."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditmoe.nn import cells
from modalities.shared import patchify, sincos, unpatchify


@settings(max_examples=40, deadline=None)
@given(
    axes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4),
    channels=st.integers(1, 3),
)
def test_inverse_is_the_identity(axes: list[tuple[int, int]], channels: int) -> None:
    patch, grid = [p for _, p in axes], [n * p for n, p in axes]
    x = torch.randn(2, *grid, channels)
    tokens = patchify(x, patch)
    assert torch.equal(unpatchify(tokens, grid, patch), x)


def test_tokens_are_listed_as_their_coordinates() -> None:
    grid, patch = [4, 6, 2], [2, 3, 1]
    where = torch.stack(torch.meshgrid(*[torch.arange(g) for g in grid], indexing="ij"), dim=-1)[None].float()
    tokens = patchify(where, patch).view(-1, 6, 3)  # every cell says where it was
    assert torch.equal(tokens[:, 0] / torch.tensor(patch), cells([2, 2, 2]).float())
    inside = list(itertools.product(range(2), range(3), range(1)))
    assert torch.equal(tokens[0], torch.tensor(inside).float())


def test_patch_must_divide() -> None:
    with pytest.raises(ValueError, match=r"\(5, 4\) and \(2, 2\)"):
        patchify(torch.zeros(1, 5, 4, 1), [2, 2])


def test_positions_equal_dit3d(golden) -> None:
    table = torch.tensor(golden("golden_dit3d_tiny.npz")["pos_embed_d48_g4"])
    assert torch.allclose(sincos(cells([4] * 3), 48).double(), table, atol=1e-6)


@pytest.mark.parametrize(("axes", "hidden"), [(1, 8), (2, 16), (3, 128), (3, 1024)])
def test_positions_differ_and_fill_any_width(axes: int, hidden: int) -> None:
    table = sincos(cells([3] * axes), hidden)
    assert table.shape == (3**axes, hidden)
    assert torch.cdist(table, table).fill_diagonal_(9).min() > 0.1
