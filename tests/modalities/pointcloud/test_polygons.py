"""Polygons are cut as the rule of ears says, for a price that is bounded."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalities.pointcloud.data import polygons
from modalities.pointcloud.data.polygons import MOST_TESTS, triangulate

CORNERS = st.tuples(*[st.sampled_from([0.0, -0.0, 0.1, 0.3, 1.0, 1.7, 2.0, 1e-9])] * 2)


def turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def ears(points: np.ndarray) -> list[tuple[int, int, int]]:
    """As the rule says it, corner by corner."""
    around, cut, at, since = list(range(len(points))), [], 0, 0
    while len(around) > 3:
        at %= len(around)
        ear = around[at - 1], around[at], around[(at + 1) % len(around)]
        a, b, c = points[list(ear)]
        held = any(
            turn(a, b, p) >= 0 and turn(b, c, p) >= 0 and turn(c, a, p) >= 0
            for p in points[around]
            if not any((p == own).all() for own in (a, b, c))
        )
        stuck = since >= len(around)
        if stuck or (turn(a, b, c) > 0 and not held):
            cut.append(ear)
            del around[at]
            at, since = at - 1, 0
        elif turn(a, b, c) == 0 and (a == b).all():
            del around[at]
            since = 0
        else:
            at, since = at + 1, since + 1
    return [*cut, tuple(around)]


@settings(max_examples=300, deadline=None)
@given(st.lists(CORNERS, min_size=4, max_size=12))
def test_polygons_of_any_form_are_cut_as_the_rule_says(corners: list[tuple[float, float]]) -> None:
    points = np.array(corners)
    assert polygons._ears(points, MOST_TESTS)[0] == ears(points)


def star(corners: int) -> np.ndarray:
    angle, radius = (
        np.linspace(0, 2 * np.pi, corners, endpoint=False),
        np.where(np.arange(corners) % 2, 1, 0.2),
    )
    return np.stack([np.cos(angle) * radius, np.sin(angle) * radius, 0 * angle], axis=1)


def cloud(corners: int) -> np.ndarray:
    """A polygon that crosses itself everywhere."""
    return np.random.default_rng(0).normal(size=(corners, 3))


@pytest.mark.parametrize("points", [star(98), star(250), cloud(60), cloud(250)], ids=len)
def test_what_is_counted_is_what_is_done(points: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """All corners are looked at only around convex ones, and what is left counts each look and its corners."""
    looks: list[int] = []
    holds = polygons._holds

    def counted(x: np.ndarray, y: np.ndarray, triangle: tuple) -> bool:
        assert polygons._turn(*triangle) > 0
        looks.append(len(x))
        return holds(x, y, triangle)

    monkeypatch.setattr(polygons, "_holds", counted)
    flat = polygons._flattened(points, polygons._convex(points[None])[1][0])
    used = MOST_TESTS - polygons._ears(flat, MOST_TESTS)[1]
    assert 0 < len(looks) <= used
    assert sum(looks) <= 100 * used + 100 * len(looks)


def test_polygons_that_cost_too_much_are_refused_before_the_price_is_paid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polygons, "MOST_TESTS", 1000)
    points, looks, holds = star(98), [], polygons._holds
    monkeypatch.setattr(polygons, "_holds", lambda *of: looks.append(1) or holds(*of))
    with pytest.raises(
        ValueError, match=r"^concave polygons must be simple enough to be cut in seconds, got one of 98"
    ):
        triangulate(points, np.full(1000, 98), np.tile(np.arange(98), 1000))
    assert len(looks) <= 1000
    assert len(triangulate(points, np.array([98]), np.arange(98))) == 96


def test_corners_within_a_triangle_are_compared_as_arrays() -> None:
    """A spiral of triangles, each of which holds all that follow, took 45 seconds of a core in 1 MB: as objects."""
    turns = np.arange(20_000)
    x, y = (f(2 * np.pi * turns / 3) * (1 - 0.9 * turns / len(turns)) for f in (np.cos, np.sin))
    outer = (x[0], y[0]), (x[1], y[1]), (x[2], y[2])
    tracemalloc.start()
    try:
        assert polygons._holds(x, y, outer)
        assert tracemalloc.get_traced_memory()[1] < 8 * x.nbytes
    finally:
        tracemalloc.stop()
    assert not polygons._holds(x[:3], y[:3], outer)
    assert not polygons._holds(x, y, tuple((a + 9, b) for a, b in outer))
