"""Distances that a GPU computes, on a CPU: the same numbers as the kernels', whatever the sizes, in little memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modalities.pointcloud import evaluate_sets
from modalities.pointcloud.metrics import bounds, chamfer, distance, distance_matrices
from modalities.pointcloud.metrics.bounds import Projections
from modalities.pointcloud.metrics.distance import num_pairs, pairwise

CPU = torch.device("cpu")


def clouds(seed: int, sizes: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(size, 3)) * rng.uniform(0.1, 3) + rng.normal(size=3) for size in sizes]


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(seed=st.integers(0, 2**16), left=SIZES, right=SIZES, far=st.sampled_from([0.0, 1e4]))
@settings(max_examples=25, deadline=None)
def test_a_device_gives_what_the_host_gives_for_clouds_of_unequal_sizes(seed, left, right, far):
    a, b = clouds(seed, left), clouds(seed + 1, right)
    b[0] = a[0].copy()
    a, b = [x + far for x in a], [x + far for x in b]
    rows, columns = np.indices((len(a), len(b))).reshape(2, -1)
    found = chamfer.pairwise_chamfer(a, b, rows, columns, device=CPU).reshape(len(a), len(b))
    np.testing.assert_allclose(found, pairwise(a, b, "cd"), rtol=1e-11, atol=1e-14)
    assert found[0, 0] == 0


@pytest.mark.parametrize("entries", [1, 200, 450, 10_000])
def test_large_clouds_are_taken_in_pieces(entries, monkeypatch):
    x, y = (torch.from_numpy(np.stack(clouds(seed, [50] * 3))) for seed in (0, 1))
    squares, sizes = torch.cdist(x, y) ** 2, []
    argmin = torch.Tensor.argmin
    monkeypatch.setattr(
        torch.Tensor, "argmin", lambda ways, dim: sizes.append(ways.numel()) or argmin(ways, dim)
    )
    to_y, to_x = chamfer.nearest_squares(x, y, entries)
    assert max(sizes) <= max(entries, 3 * 50)
    assert sum(sizes) == 3 * 50 * 50
    torch.testing.assert_close(to_y, squares.amin(2), rtol=1e-10, atol=0)
    torch.testing.assert_close(to_x, squares.amin(1), rtol=1e-10, atol=0)


def test_an_evaluation_by_a_gpu_has_the_values_of_one_without(monkeypatch, tmp_path):
    generated, reference = clouds(0, [60] * 6), clouds(1, [60] * 7)
    host = evaluate_sets(generated, reference, emd="exact_l2", progress=False)
    asked = []
    monkeypatch.setattr(distance, "has_cuda", lambda: asked.append(1) or True)
    monkeypatch.setattr(bounds, "has_cuda", lambda: True)
    monkeypatch.setattr(distance_matrices, "KEEP", 0.0)
    on_device = evaluate_sets(generated, reference, emd="exact_l2", progress=False, cache=tmp_path)
    assert asked
    assert on_device.values == pytest.approx(dict(host.values), rel=1e-10)
    assert "cd on a GPU" in on_device.protocol["distances"] != host.protocol["distances"]


def test_pairs_are_counted_and_stand_where_they_belong(monkeypatch):
    monkeypatch.setattr(distance, "has_cuda", lambda: True)
    monkeypatch.setattr(chamfer, "ENTRIES", 3 * 20 * 30)  # three pairs at a time
    a, b = clouds(0, [20] * 5), clouds(1, [30] * 4)
    for right in (a, b):
        ticks: list[int] = []
        found = pairwise(a, right, "cd", progress=ticks.append)
        assert sum(ticks) == num_pairs(a, right, "cd")
        assert len(ticks) > 2
        assert found[1, 3] == pytest.approx(distance.chamfer(a[1], right[3]), rel=1e-12)
    own = pairwise(a, a, "cd")
    np.testing.assert_array_equal(own, own.T)
    np.testing.assert_array_equal(np.diag(own), 0)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("bases", [1, 3])
def test_bounds_of_all_pairs_are_those_of_each(squared, bases):
    projections = Projections(clouds(0, [40] * 6), squared, bases)
    each = projections.all()
    assert each.shape == (6, 6)
    np.testing.assert_allclose(projections.all(CPU), each, rtol=1e-10, atol=1e-14)


def test_pytorch3d_gives_the_same():
    pytest.importorskip("pytorch3d.ops")
    x, y = (torch.from_numpy(np.stack(clouds(seed, [50, 50]))) for seed in (0, 1))
    assert chamfer.knn_points() is not None
    for found, expected in zip(chamfer.squares(x, y), chamfer.nearest_squares(x, y), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
