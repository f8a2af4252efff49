"""Data sets of clouds: batches are functions of their address, splits and normalisation are as written down."""

import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.furniture import CHOSEN, GRID, LICENCES, missing, steps_of
from benchmarks.quality.sweet_home import CATALOGUE
from modalities.pointcloud import Clouds
from modalities.pointcloud.data import catalogue
from modalities.pointcloud.data.axes import still_to_turn
from modalities.pointcloud.data.catalogue import SYNSETS, class_name
from modalities.shared.datasets import SPLITS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chairs under their synset id and blobs under their name, 100 points each; x tells the shape."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for folder, counts in {"03001627": (6, 2, 1), "blob": (2, 1, 1)}.items():
        for split, count in zip(SPLITS, counts, strict=True):
            (root / folder / split).mkdir(parents=True)
            for i in range(count):
                np.save(root / folder / split / f"s{i}.npy", rng.normal((i, 0, 0), size=(100, 3)))
    (root / "notes").mkdir()
    return root


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(root, tmp_path / "copy")


def rows(points: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in np.ascontiguousarray(points, np.float32)}


BUILT_IN = Clouds(num_points=64, mirror=True, scale_jitter=0.1)


def test_the_built_in_set_is_as_its_readme_says() -> None:
    assert [len(BUILT_IN.split(split)) for split in SPLITS] == [241, 21, 19]
    counts = Counter(BUILT_IN.classes[label] for split in SPLITS for label in BUILT_IN.labels(split))
    listed = ", ".join(f"{name} {count}" for name, count in counts.most_common() if name != "other")
    told = (catalogue.BUILT_IN.parent / "README.md").read_text()
    assert f"`category` | {listed}, other {counts['other']} |" in told
    whole = BUILT_IN.reference("train", 4096).data
    low, high = whole.min(axis=1), whole.max(axis=1)
    np.testing.assert_allclose(np.linalg.norm(high - low, axis=1), 1, atol=0.06)
    np.testing.assert_allclose((high + low) / 2, 0, atol=0.03)
    # Along the Morton curve the first points are a corner of the shape; shuffled, they are spread over it.
    few = whole[:, :256]
    assert (np.ptp(few, axis=1) > 0.8 * np.ptp(whole, axis=1)).mean() > 0.9


def test_cc0_leaves_the_held_out_shapes_and_takes_training_shapes_away() -> None:
    free = Clouds(num_points=64, cc0=True)
    assert [len(free.split(split)) for split in SPLITS] == [135, 21, 19]
    assert {shape.name for shape in free.split("train")} < {shape.name for shape in BUILT_IN.split("train")}
    for split in ("val", "test"):
        assert [s.name for s in free.split(split)] == [s.name for s in BUILT_IN.split(split)]
    with np.load(catalogue.BUILT_IN) as file:
        assert all(file["creator"][file["licence"] != "CC0 1.0"]), "whoever must be credited has a name"


def test_cc0_is_for_the_built_in_set(root: Path) -> None:
    with pytest.raises(ValueError, match="cc0 is for the built-in set"):
        Clouds(root, cc0=True)


def test_points_come_back_from_their_steps_along_the_curve() -> None:
    points = np.random.default_rng(0).normal(size=(500, 3)) * (1, 2, 3) + 7
    back = np.cumsum(steps_of(points), axis=1).T / GRID
    low, high = points.min(0), points.max(0)
    wanted = (points - (low + high) / 2) / np.linalg.norm(high - low)
    sort = lambda x: x[np.lexsort(np.round(x * GRID).T)]  # noqa: E731
    np.testing.assert_allclose(sort(back), sort(wanted), atol=0.51 / GRID)
    assert np.abs(np.diff(back, axis=0)).mean() < 0.3 * np.abs(np.diff(wanted, axis=0)).mean(), (
        "near stays near"
    )


@pytest.mark.parametrize("built_in", [True, False])
def test_training_points_have_zero_mean_and_unit_deviation(root: Path, built_in: bool) -> None:
    clouds = Clouds(None if built_in else root, num_points=8)
    points = clouds.reference("train", 4096 if built_in else 100).data
    points = (points - clouds.mean) / clouds.scale
    np.testing.assert_allclose(points.mean(axis=(0, 1)), 0, atol=1e-4)
    assert points.std(axis=(0, 1)) @ points.std(axis=(0, 1)) / 3 == pytest.approx(1, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    step=st.integers(0, 10**9),
    size=st.integers(1, 4),
    world=st.integers(1, 3),
    balance=st.sampled_from([0.0, 0.5]),
)
def test_ranks_share_one_stream(
    root: Path, seed: int, step: int, size: int, world: int, balance: float
) -> None:
    make = partial(Clouds, root, num_points=16, mirror=True, scale_jitter=0.1, balance=balance)
    clouds = make()
    points, labels = clouds.batch(size * world, seed, step)
    assert (points.dtype, labels.dtype) == (np.float32, np.int64)
    parts = [clouds.batch(size, seed, step, rank, world) for rank in range(world)]
    np.testing.assert_array_equal(points, np.concatenate([part[0] for part in parts]))
    np.testing.assert_array_equal(labels, np.concatenate([part[1] for part in parts]))
    other = make().batch(size, seed, step, 0, world)
    np.testing.assert_array_equal(other[0], parts[0][0])


def test_seeds_and_steps_differ() -> None:
    firsts = [BUILT_IN.batch(1, seed, step)[0].tobytes() for seed in range(3) for step in range(200)]
    assert len(set(firsts)) == len(firsts)


def test_an_epoch_visits_each_shape_once(root: Path) -> None:
    clouds = Clouds(root, num_points=100)
    assert len(clouds.split("train")) == 8
    known = {
        frozenset(
            rows((clouds.draw(i, np.random.default_rng(0)) - clouds.mean) / np.float32(clouds.scale))
        ): i
        for i in range(8)
    }
    epochs = []
    for epoch in range(3):
        points = np.concatenate([clouds.batch(4, 0, 2 * epoch + half)[0] for half in range(2)])
        epochs.append([known[frozenset(rows(cloud))] for cloud in points])
        assert sorted(epochs[-1]) == list(range(8))
    assert epochs[0] != epochs[1] != epochs[2]


def test_balance_makes_classes_alike(root: Path) -> None:
    for balance, share in ((0.0, 6 / 8), (1.0, 1 / 2), (0.5, 6**0.5 / (6**0.5 + 2**0.5))):
        labels = Clouds(root, num_points=1, balance=balance).batch(500, 0, 0)[1]
        assert np.mean(labels == 1) == pytest.approx(share, abs=0.05)


def test_a_draw_has_no_point_twice(root: Path) -> None:
    clouds = Clouds(root, num_points=90)
    for index in range(8):
        points = rows(clouds.draw(index, np.random.default_rng(0)))
        assert len(points) == 90
        assert points <= rows(clouds.reference("train", 100).data[index])


def test_augmentation_keeps_the_diagonal_and_mirrors_half() -> None:
    plain, augmented = Clouds(num_points=500), Clouds(num_points=500, mirror=True, scale_jitter=0.2)
    flips = 0
    for seed in range(200):
        a = plain.draw(0, np.random.default_rng(seed))
        b = augmented.draw(0, np.random.default_rng(seed), augment=True)
        np.testing.assert_array_equal(a, augmented.draw(0, np.random.default_rng(seed)))
        assert np.linalg.norm(np.ptp(b, axis=0)) == pytest.approx(np.linalg.norm(np.ptp(a, axis=0)), rel=1e-4)
        factor = (b * a).sum(axis=0) / (a * a).sum(axis=0)
        np.testing.assert_allclose(b, a * factor, atol=1e-5)
        assert (factor[1:] > 0).all()
        assert (np.abs(factor) < 1.2 / 0.8).all()
        flips += factor[0] < 0
    assert 70 < flips < 130


def test_of_15000_points_the_first_train_and_the_last_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    points = np.random.default_rng(0).normal(size=(15_000, 3)).astype(np.float32)
    (tmp_path / "a" / "train").mkdir(parents=True)
    np.save(tmp_path / "a" / "train" / "x.npy", points)
    clouds = Clouds(tmp_path, num_points=10_000)
    assert rows(clouds.draw(0, np.random.default_rng(0))) == rows(points[:10_000])
    np.testing.assert_array_equal(clouds.reference("train", 2048).data[0], points[10_000:12_048])
    np.testing.assert_allclose(clouds.mean, points[:10_000].mean(axis=0), atol=1e-6)
    assert rows(clouds.reference("train").data[0]) == rows(points[10_000:])
    assert "fewest 10000 of a/x" not in capsys.readouterr().err
    assert rows(Clouds(tmp_path, num_points=10_001).draw(0, np.random.default_rng(0))) == rows(
        points[:10_000]
    )
    assert "fewest 10000 of a/x" in capsys.readouterr().err


def test_the_order_of_the_file_system_does_not_matter(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = Clouds(root, num_points=10)
    names = [shape.name for shape in straight.split("train")]
    points = straight.batch(8, 0, 0)[0]
    for method in ("iterdir", "glob"):
        real = getattr(Path, method)
        monkeypatch.setattr(Path, method, lambda *a, real=real: iter(sorted(real(*a), reverse=True)))
    reverse = Clouds(root, num_points=10)
    assert [shape.name for shape in reverse.split("train")] == names
    np.testing.assert_array_equal(reverse.batch(8, 0, 0)[0], points)


def test_classes_are_named_by_word_or_synset(root: Path) -> None:
    assert len(SYNSETS) == len(set(SYNSETS.values())) == 55
    assert Clouds(root).classes == ["blob", "chair"]
    for wanted in (["chair", "blob"], ["03001627", "blob"], [int("3001627", 8), "blob"]):
        clouds = Clouds(root, classes=wanted)
        assert clouds.classes == ["chair", "blob"]
        assert clouds.labels("train").tolist() == [0] * 6 + [1] * 2
    assert Clouds(root, classes="blob").classes == ["blob"]
    assert class_name(2691156) == "airplane"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["chairs"]}, "got 'chairs'; the nearest are chair"),
        ({"classes": ["airplane", "02691156"]}, "must be in .*got 'airplane'; the nearest are blob, chair"),
        ({"classes": ["blob", "blob"]}, "each once"),
        ({"classes": []}, "one or more"),
        ({"root": "nowhere"}, r"laid out as <class>/\{train,val,test\}/\*\.npy, got nothing there"),
        ({"num_points": 0}, "num_points must be at least 1, got 0"),
        ({"few": "drop"}, "few must be repeat or leave_out"),
        ({"up": "-z"}, "up must be one of x, y, z"),
        ({"scale_jitter": 1}, r"scale_jitter must be in \[0, 1\), got 1"),
    ],
)
def test_bad_arguments_are_told_in_one_line(root: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Clouds(**{"root": root} | arguments).batch(1, 0, 0)
    assert "\n" not in str(error.value)


def test_layouts_that_cannot_serve(tmp_path: Path, root: Path) -> None:
    with pytest.raises(ValueError, match="no such folder in it"):
        Clouds(tmp_path).classes  # noqa: B018
    (tmp_path / "a" / "val").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"must hold shapes in <class>/train/\*\.npy, got none"):
        Clouds(tmp_path).batch(1, 0, 0)
    with pytest.raises(ValueError, match="a split must be one of train, val, test, got 'dev'"):
        Clouds(root).split("dev")
    shutil.copytree(root / "03001627", tmp_path / "03001627")
    shutil.copytree(root / "03001627", tmp_path / "chair")
    with pytest.raises(ValueError, match="one folder for the class chair, got 03001627 and chair"):
        Clouds(tmp_path).classes  # noqa: B018


def test_a_bad_file_gives_way_to_the_next_of_its_class(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Clouds(copy, num_points=100).reference("train")
    bad = copy / "03001627" / "train" / "s5.npy"
    bad.write_bytes(bad.read_bytes()[:-1])
    clouds = Clouds(copy, num_points=100)
    points, labels = clouds.batch(40, 0, 0)
    assert rows(clouds.draw(7, np.random.default_rng(0))) == rows(before.data[2])  # 2 blobs, then 6 chairs
    assert labels.sum() == 30
    assert np.isfinite(points).all()
    assert list(clouds.unreadable) == [bad]
    assert capsys.readouterr().err.count("s5.npy") == 1
    after = clouds.reference("train")
    np.testing.assert_array_equal(after.data, before.data[:7])
    assert list(after.labels) == [0, 0, 1, 1, 1, 1, 1]


def test_a_class_without_a_readable_file_is_an_error(copy: Path) -> None:
    for path in (copy / "blob" / "train").iterdir():
        np.save(path, np.full((100, 3), np.nan))
    with pytest.raises(ValueError, match=r"readable files of points in blob/train, got none: .*NaN"):
        Clouds(copy, num_points=10).batch(8, 0, 0)
    with pytest.raises(ValueError, match="in train, got none"):
        Clouds(copy, classes=["blob"], num_points=10).mean  # noqa: B018


def test_classes_that_cannot_be_trained_are_told(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "blob" / "train")
    clouds = Clouds(copy, num_points=10)
    assert clouds.batch(8, 0, 0)[1].tolist() == [1] * 8
    assert str(clouds.understood()).count("nothing to train on in 1 of the classes: blob") == 1
    assert not capsys.readouterr().err


def test_few_points_are_drawn_again_or_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a" / "train").mkdir(parents=True)
    for i, count in enumerate((40, 8)):
        np.save(tmp_path / "a" / "train" / f"{i}.npy", np.random.default_rng(i).normal(size=(count, 3)))
    clouds = Clouds(tmp_path, num_points=32)
    assert len(np.unique(clouds.draw(1, np.random.default_rng(0)), axis=0)) == 8
    assert clouds.reference("train").data.shape == (2, 32, 3)
    assert (
        "1 of 2 shapes in train have less than num_points = 32 points, the fewest 8"
        in capsys.readouterr().err
    )
    assert len(Clouds(tmp_path, num_points=32, few="leave_out").split("train")) == 1


def test_the_axis_that_points_up_becomes_y(tmp_path: Path) -> None:
    (tmp_path / "a" / "train").mkdir(parents=True)
    points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.save(tmp_path / "a" / "train" / "0.npy", points)
    for up in "xyz":
        read = Clouds(tmp_path, num_points=40, up=up).reference("train").data[0]
        np.testing.assert_array_equal(read[:, 1], points[:, "xyz".index(up)])
        turn = np.linalg.lstsq(points.astype(float), read.astype(float))[0]
        assert np.linalg.det(turn) == pytest.approx(1)
    (tmp_path / "prepare.json").write_text('{"up": "z"}')
    np.testing.assert_array_equal(Clouds(tmp_path, num_points=40, up="z").reference("train").data[0], points)


@pytest.mark.parametrize(
    ("text", "line"),
    [("5", "must hold a JSON object, got int"), ("[[1, 2]]", "must hold a JSON object, got list"),
     ('{"channels": 5}', "must be a list of names"), ('{"channels": [[]]}', "must be a list of names")],
)  # fmt: skip
def test_a_report_of_prepare_that_is_none_is_one_line(text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "a" / "train").mkdir(parents=True)
    np.save(tmp_path / "a" / "train" / "0.npy", np.zeros((40, 6)))
    (tmp_path / "prepare.json").write_text(text)
    coloured = Clouds(tmp_path, num_points=40, up="z", channels=("xyz", "rgb"))
    with pytest.raises(ValueError, match=rf"^[^\n]*prepare\.json[^\n]*{line}[^\n]*$"):
        coloured.reference("train")
    if "channels" not in text:
        with pytest.raises(ValueError, match=rf"^[^\n]*prepare\.json {line}$"):
            still_to_turn(tmp_path, "z")


def test_clouds_far_from_the_origin_keep_their_form(tmp_path: Path) -> None:
    (tmp_path / "a" / "train").mkdir(parents=True)
    points = np.random.default_rng(0).random((64, 3)) * 0.3
    np.save(tmp_path / "a" / "train" / "0.npy", points)
    near = Clouds(tmp_path, num_points=64).batch(1, 0, 0)[0]
    np.save(tmp_path / "a" / "train" / "0.npy", points + np.array([694386, 5155487, 381]))
    far = Clouds(tmp_path, num_points=64).batch(1, 0, 0)[0]
    np.testing.assert_allclose(far, near, atol=1e-3)


def test_meshes_that_are_not_trained_on_lead_to_prepare(tmp_path: Path) -> None:
    folder = tmp_path / "my shapes" / "box" / "train"
    folder.mkdir(parents=True)
    (folder / "a.obj").write_text("v 0 0 0\n")
    (folder / "b.txt").write_text("1 2 3\n")
    clouds = Clouds(tmp_path / "my shapes")
    hint = r"2 meshes or clouds \(.obj .txt\) are .* python -m ditmoe.prepare 'source=.*/my shapes' out=data/"
    with pytest.raises(ValueError, match=hint):
        clouds.split("train")
    np.save(folder / "c.npy", np.zeros((3, 3), np.float32))
    assert re.search(f"note     {hint}", str(Clouds(tmp_path / "my shapes").understood()))


def test_a_mesh_that_no_library_has_is_named_before_any_is_made(tmp_path: Path) -> None:
    stems = sorted(CHOSEN)
    for number, library in enumerate(LICENCES):
        with ZipFile(tmp_path / f"{library}.sh3f", "w") as archive:
            lines = [f"model#{i}=/a/{stem}.obj" for i, stem in enumerate(stems[number:-1:3])]
            archive.writestr(CATALOGUE, "\n".join(lines))
    assert missing(tmp_path) == stems[-1:]
