"""Laws of the cloud renderer: what is near hides what is far, nothing leaves the frame, nothing is hidden."""

import importlib
import itertools

import numpy as np
import pytest

from modalities.shared.contact_sheet import sheet_size

render = importlib.import_module("modalities.pointcloud.viz.render")
clouds = importlib.import_module("modalities.pointcloud.viz.contact_sheet")


@pytest.fixture
def cloud() -> np.ndarray:
    """A stool: a seat and four legs."""
    rng = np.random.default_rng(0)
    seat = rng.uniform([-0.3, 0.1, -0.3], [0.3, 0.14, 0.3], (300, 3))
    legs = rng.uniform(-0.02, 0.02, (200, 3)) + rng.choice([-0.27, 0.27], (200, 3))
    legs[:, 1] = rng.uniform(-0.4, 0.1, 200)
    return np.concatenate([seat, legs])


def test_the_same_cloud_gives_the_same_picture(cloud):
    first = render.render(cloud, 64)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, render.render(cloud.copy(), 64))


def test_a_full_turn_of_the_camera_changes_nothing(cloud):
    first = render.render(cloud, 64, azimuth=38, elevation=22)
    assert np.array_equal(first, render.render(cloud, 64, azimuth=398, elevation=22))
    assert np.array_equal(first, render.render(cloud, 64, azimuth=-322, elevation=382))
    assert not np.array_equal(first, render.render(cloud, 64, azimuth=128))


def test_turning_the_cloud_is_turning_the_camera(cloud):
    turned = cloud[:, [2, 1, 0]] * [1, 1, -1]
    first = render.render(cloud, 64, azimuth=0).astype(int)
    second = render.render(turned, 64, azimuth=90).astype(int)
    # The sky stays where it is, so that shades differ a little; shapes do not.
    assert np.abs(first - second).mean() < 1
    assert np.abs(first - render.render(cloud, 64, azimuth=45)).mean() > 5


def test_neither_unit_nor_origin_changes_the_picture(cloud):
    first = render.render(cloud, 64).astype(int)
    moved = render.render(cloud * 1024 + [256, -512, 64], 64).astype(int)
    assert (np.abs(first - moved) > 2).mean() < 0.01


@pytest.mark.parametrize("elevation", [0.0, 22.0, 80.0])
def test_what_turns_stays_in_the_frame_and_keeps_its_size(cloud, elevation):
    """At every azimuth one zoom and one place of the axis; at some azimuth it comes near to the edge."""
    points = render.normalise(cloud * [1, 1, 3])
    axis, widest = np.array([[0.0, -0.2, 0.0], [0.0, 0.3, 0.0]]), 0.0
    seen = []
    for azimuth in range(0, 360, 15):
        view = render.camera(azimuth, elevation)
        fits = render.swept(points, elevation)
        screen = render.project(points @ view.T, 100, 0.01, fits)
        assert screen.center.min() > 0
        assert screen.center.max() < 100
        widest = max(widest, np.ptp(screen.center, axis=0).max())
        seen.append((screen.zoom, *render.project(axis @ view.T, 100, 0.01, fits).center.ravel()))
    assert np.allclose(seen, seen[0])
    assert widest > 80


def test_a_nearer_point_hides_a_farther_one():
    screen = render.project(np.array([[0.0, 0, 0.4], [0.0, 0, -0.4]]), 65, 0.1)
    winner = render._nearest(screen)
    assert set(winner) == {-1, 0}


@pytest.mark.parametrize("fragments", [10, 2_000_000])
def test_the_z_buffer_equals_a_loop_over_pixels_and_spheres(cloud, monkeypatch, fragments):
    monkeypatch.setattr(render, "FRAGMENTS", fragments)
    screen = render.project(cloud[::20], 24, 0.06)
    winner = render._nearest(screen).reshape(24, 24)
    for row, column in itertools.product(range(24), repeat=2):
        gap = screen.radius**2 - ((screen.center - [column + 0.5, row + 0.5]) ** 2).sum(1)
        depth = np.where(gap > 0, screen.depth + np.sqrt(np.maximum(gap, 0)) / screen.zoom, -np.inf)
        if winner[row, column] < 0:
            assert gap.max() < 1e-4
        else:
            assert depth[winner[row, column]] >= depth.max() - 1e-4


@pytest.mark.parametrize("elevation", [-30, 0, 22, 90])
def test_every_sphere_lies_inside_the_frame(elevation):
    rng = np.random.default_rng(1)
    for count, scale in itertools.product((1, 2, 50), ([1, 1, 1], [9, 1, 1], [1, 9, 1], [0, 0, 1])):
        points = render.normalise(rng.normal(size=(count, 3)) * scale)
        for azimuth in range(0, 360, 45):
            view = render.camera(azimuth, elevation)
            screen = render.project(points @ view.T, 100, 0.03)
            assert (screen.center - screen.radius[:, None] >= 0).all()
            assert (screen.center + screen.radius[:, None] <= 100).all()


def test_the_border_stays_white(cloud):
    image = render.render(cloud, 96)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert border.min() >= 252
    assert image.min() < 120


def test_an_empty_cloud_leaves_the_background_untouched():
    assert (render.render(np.empty((0, 3)), 32) == 255).all()
    assert (render.render(np.full((4, 3), np.nan), 32) == 255).all()


def test_points_that_are_not_finite_are_dropped(cloud):
    bad = np.concatenate([cloud, [[np.nan, 0, 0], [0, np.inf, 0], [0, 0, -np.inf]]])
    assert np.array_equal(render.render(bad, 64), render.render(cloud, 64))


def test_a_stray_point_is_drawn(cloud):
    """Far to the right of the picture, with nothing but white between it and the shape."""
    image = render.render(np.concatenate([cloud, [[3.0, 0, 0]]]), 96, azimuth=0)
    dark = np.flatnonzero((image.min(2) < 160).any(0))
    assert dark.max() > 85
    assert np.diff(dark).max() > 20


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
def test_any_number_of_points_of_any_type_can_be_drawn(cloud, dtype):
    for count in (1, 2, 3, 500):
        image = render.render((cloud[:count] * 100).astype(dtype), 48)
        assert image.min() < 200


def test_points_in_one_place_and_huge_ones_can_be_drawn(cloud):
    assert render.render(np.ones((50, 3)), 48).min() < 200
    assert render.render(cloud * 1e308, 48).min() < 200


def test_from_below_there_is_no_ground(cloud):
    bright = render.render(cloud, 64, elevation=-10).min(2) > 250
    assert bright.mean() > (render.render(cloud, 64, elevation=30).min(2) > 250).mean()


def test_an_impossible_size_is_refused(cloud):
    with pytest.raises(ValueError, match="size must be"):
        render.render(cloud, 0)


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (5, 5, 1), (6, 5, 2), (7, 3, 3)])
def test_the_size_of_a_sheet_follows_from_rows_and_columns(cloud, count, columns, rows):
    sheet = clouds.contact_sheet([cloud] * count, columns=columns, cell=32)
    width, height = sheet_size(rows, columns, 32)
    assert sheet.shape == (height, width, 3)
    titled = clouds.contact_sheet([cloud] * count, columns=columns, cell=32, title="stools")
    assert titled.shape == (sheet_size(rows, columns, 32, title=True)[1], width, 3)
    assert not np.array_equal(titled[-height:], np.full_like(sheet, 255))


def test_labels_appear(cloud):
    plain = clouds.contact_sheet([cloud], cell=64)
    assert not np.array_equal(plain, clouds.contact_sheet([cloud], ["stool"], cell=64))
    assert np.array_equal(plain, clouds.contact_sheet([cloud], [""], cell=64))


def test_a_label_never_leaves_its_cell(cloud):
    sheet = clouds.contact_sheet(
        [cloud[:0]], ["a name far too long for the cell it lies under " * 3], cell=64
    )
    assert sheet.min() < 200
    assert (sheet[:, :4] == 255).all()
    assert (sheet[:, -4:] == 255).all()


def test_the_label_says_what_is_missing(cloud):
    bad = np.concatenate([cloud, [[np.nan, 0, 0]]])
    whole = clouds.contact_sheet([cloud], ["stool"], cell=64)
    assert not np.array_equal(whole, clouds.contact_sheet([bad], ["stool"], cell=64))
    assert clouds._label("stool", 501, 500) == "stool (1 not finite)"
    assert clouds._label("stool", 5, 0) == "stool (all not finite)"
    assert clouds._label("", 0, 0) == "(empty)"
    assert clouds._label("stool", 5, 5) == "stool"


def test_a_sheet_of_nothing_is_refused(cloud):
    with pytest.raises(ValueError, match="clouds must be"):
        clouds.contact_sheet([])
    with pytest.raises(ValueError, match="labels must be"):
        clouds.contact_sheet([cloud], ["a", "b"])
    with pytest.raises(ValueError, match="columns must be"):
        clouds.contact_sheet([cloud], columns=0)
