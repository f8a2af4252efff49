"""Preparing a person's shapes: one bad file costs only itself, and what is there is never done twice."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh

from modalities.pointcloud import Clouds
from modalities.pointcloud.data import scans
from modalities.pointcloud.data.formats import CLOUD_SUFFIXES, MESH_SUFFIXES, SET_SUFFIXES
from modalities.pointcloud.data.pieces import absent
from modalities.pointcloud.data.prepare import prepare
from modalities.shared.isolation import run_isolated


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes and a shape at the top; of each kind of file one, and each kind of trouble."""
    source = tmp_path / "source"
    (source / "box" / "deep").mkdir(parents=True)
    (source / "cloud").mkdir()
    rng = np.random.default_rng(0)
    for i, suffix in enumerate(("obj", "ply", "stl", "glb", "off")):
        trimesh.creation.box((1, 2 + i, 3)).export(source / "box" / "deep" / f"a b{i}.{suffix}")
    for i in range(4):
        np.save(source / "cloud" / f"c{i}.npy", rng.normal(size=(90 if i else 40, 3)) + 1e6)
    np.savez(source / "cloud" / "z.npz", points=rng.normal(size=(90, 3)))
    np.savetxt(source / "top.xyz", rng.normal(size=(90, 3)))
    (source / "cloud" / "twin.npy").write_bytes((source / "cloud" / "c1.npy").read_bytes())
    (source / "box" / "bad.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    np.save(source / "cloud" / "still.npy", np.zeros((90, 3)))
    (source / "README.txt").write_text("not a shape")
    return source


def test_a_folder_of_shapes_becomes_a_data_set(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = prepare(source, out, num_points=64, split=(0.5, 0.25, 0.25), workers=2)
    assert {name: sum(row.values()) for name, row in report["counts"].items()} == {
        "box": 5,
        "cloud": 5,
        "shape": 1,
    }
    assert (report["made"], report["kept"], report["removed"]) == (11, 0, 0)
    assert report["duplicates"] == {"cloud/twin.npy": "cloud/c1.npy"}
    assert list(report["unreadable"]) == ["box/bad.obj", "cloud/still.npy"]
    assert "zero area" in report["unreadable"]["box/bad.obj"]
    assert "kept 0, made 11, removed 0" in capsys.readouterr().out
    assert json.loads((out / "prepare.json").read_text()) == {
        key: value for key, value in report.items() if key not in ("made", "kept", "removed", "seconds")
    }
    files = sorted(out.rglob("*.npy"))
    assert len(files) == 11
    for path in files:
        points = np.load(path)
        assert points.dtype == np.float32
        assert points.shape == (40 if path.name.startswith("c0-") else 64, 3)
        low, high = points.min(axis=0), points.max(axis=0)
        assert np.linalg.norm(high - low) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(low + high, 0, atol=1e-6)
    clouds = Clouds(out, num_points=32)
    assert clouds.classes == ["box", "cloud", "shape"]
    assert clouds.batch(4, 0, 0)[0].shape == (4, 32, 3)


def test_a_second_run_keeps_the_first(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare(source, out, num_points=64, workers=1)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    lost = next(iter(sorted(times)))
    content = lost.read_bytes()
    lost.unlink()
    second = prepare(source, out, num_points=64, workers=1)
    assert (second["made"], second["kept"]) == (1, 10)
    assert second["counts"] == first["counts"]
    assert lost.read_bytes() == content
    assert all(path.stat().st_mtime_ns == was for path, was in times.items() if path != lost)


def test_hidden_files_of_somebody_else_stay(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "source" / "a.npy", np.eye(3))
    kept = [tmp_path / "out" / name for name in (".notes/todo.txt", ".made/work.npy")]
    for file in kept:
        file.parent.mkdir(parents=True)
        file.write_text("mine")
    for _ in range(2):
        prepare(tmp_path / "source", tmp_path / "out", num_points=8, workers=1)
        assert all(file.read_text() == "mine" for file in kept)


def test_a_note_that_links_to_a_private_file_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "source" / "a.npy", np.eye(3))
    assert prepare(tmp_path / "source", tmp_path / "out", num_points=8, workers=1)["notes"]
    (tmp_path / "private").write_text("secret")
    (note,) = (tmp_path / "out" / ".notes").iterdir()
    note.unlink()
    note.symlink_to(tmp_path / "private")
    assert prepare(tmp_path / "source", tmp_path / "out", num_points=8, workers=1)["notes"] == {}
    assert "secret" not in (tmp_path / "out" / "prepare.json").read_text()


def test_a_private_file_is_not_quoted_as_unreadable(tmp_path: Path) -> None:
    """A stranger's folder may hold links to it under the name of any format."""
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "source" / "a.npy", np.eye(3))
    (tmp_path / "private").write_text("secret\n")
    formats = sorted({*CLOUD_SUFFIXES, *MESH_SUFFIXES, *SET_SUFFIXES, *scans.SUFFIXES} - {".npy"})
    for suffix in formats:
        (tmp_path / "source" / f"b{suffix}").symlink_to(tmp_path / "private")
    report = prepare(tmp_path / "source", tmp_path / "out", num_points=8, workers=1)
    assert report["unreadable"]
    assert "secret" not in json.dumps(report)


def test_the_split_of_a_shape_outlasts_other_shapes(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "a", num_points=8, workers=1)
    before = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.npy")}
    (source / "cloud" / "c2.npy").unlink()
    np.save(source / "another.npy", np.eye(3))
    prepare(source, tmp_path / "b", num_points=8, workers=1)
    after = {path.relative_to(tmp_path / "b"): path.read_bytes() for path in (tmp_path / "b").rglob("*.npy")}
    both = before.keys() & after.keys()
    assert len(both) == 10
    assert all(before[name] == after[name] for name in both)


def test_a_shape_that_cannot_be_written_is_not_called_unreadable(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("modalities.pointcloud.data.shape_sampling.write_npy", failing)
        with pytest.raises(OSError, match=r"Input/output error.*out/"):
            prepare(source, tmp_path / "out", num_points=64, workers=1)
    assert prepare(source, tmp_path / "out", num_points=64, workers=1)["made"] == 11


def test_bad_requests_are_told_in_one_line(source: Path, tmp_path: Path) -> None:
    def told(message: str, *arguments: Path, **options: object) -> None:
        with pytest.raises(ValueError, match=message) as error:
            prepare(*arguments, **options)
        assert "\n" not in str(error.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    told("which is not there", tmp_path / "no", tmp_path / "out")
    told("which is a file", source / "top.xyz", tmp_path / "out")
    told("must hold shapes .* got none", empty, tmp_path / "out")
    told("out must not lie in source", source, source / "out")
    told("out must not lie in source", source, source)
    told("split sum to 1", source, tmp_path / "out", split=(0.5, 0.1, 0.1))
    (tmp_path / "file").write_text("")
    told("out must be a folder that can be written", source, tmp_path / "file")
    (tmp_path / "other").mkdir()
    for text in ("[1]", '{"absent": [], "absent": []}'):
        (tmp_path / "other" / "prepare.json").write_text(text)
        told("must be the report of an earlier run", source, tmp_path / "other")
        if "absent" in text:
            with pytest.raises(ValueError, match=r"prepare\.json must be the report of `prepare`"):
                absent(tmp_path / "other")
    (empty / "a.obj").write_text("hello")
    told(r"must hold readable shapes, got 1 others: a\.obj", empty, tmp_path / "out", workers=1)


def trouble(job: str) -> None:
    match job:
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "hang":
            time.sleep(60)
        case "bug":
            raise KeyError("k")
        case "bad":
            raise ValueError("bad content")


@pytest.mark.parametrize("workers", [1, 3])
def test_trouble_costs_only_its_own_job(workers: int) -> None:
    jobs = ["good1", "crash", "good2", "hang", "exit", "bug", "bad", "good3", "crash2"]
    began = time.monotonic()
    work: Callable[[str], None] = trouble
    ended = {job: error and str(error) for job, error in run_isolated(work, jobs, workers, lambda job: 2)}
    assert time.monotonic() - began < 30
    assert ended == {
        "good1": None, "good2": None, "good3": None, "crash2": None,
        "crash": "ended its process with exit code -9", "exit": "ended its process with exit code 3",
        "hang": "took more than 2 seconds", "bug": "KeyError: 'k'", "bad": "bad content",
    }  # fmt: skip


def test_sets_ids_texts_and_the_axis_up(tmp_path: Path) -> None:
    source, rng = tmp_path / "source", np.random.default_rng(0)
    (source / "02691156" / "1a04" / "models").mkdir(parents=True)
    trimesh.creation.box((1, 2, 4)).export(source / "02691156" / "1a04" / "models" / "model_normalized.obj")
    np.save(source / "02691156" / "five.npy", rng.normal(size=(5, 30, 3)))
    np.savetxt(source / "02691156" / "m.txt", rng.normal(size=(30, 6)), delimiter=",")
    np.save(source / "02691156" / "small.npy", rng.normal(size=(4, 3)))
    (source / "README.txt").write_text("three small words\n")
    report = prepare(source, tmp_path / "out", num_points=64, workers=1, up="z", min_points=10)
    assert sum(report["counts"]["02691156"].values()) == 7
    assert list(report["unreadable"]) == ["02691156/small.npy"]
    assert report["notes"]["02691156/m.txt"] == "only 30 points"
    (model,) = (tmp_path / "out").rglob("1a04-*.npy")
    assert np.ptp(np.load(model), axis=0).argmax() == 1
    assert len(list((tmp_path / "out").rglob("five-000*.npy"))) == 5


def test_the_names_of_sets_say_their_splits(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    for i, split in enumerate(("train", "val", "test")):
        np.save(
            tmp_path / "sets" / f"chair_{split}.npy", np.random.default_rng(i).normal(size=(i + 1, 40, 3))
        )
    report = prepare(tmp_path / "sets", tmp_path / "out", num_points=32, workers=1)
    assert report["counts"] == {"shape": {"train": 1, "val": 2, "test": 3}}


def test_what_is_too_small_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for category in ("a", "b"):
        (tmp_path / "source" / category).mkdir(parents=True)
    np.save(tmp_path / "source" / "a" / "one.npy", np.random.default_rng(0).normal(size=(50, 3)))
    np.save(tmp_path / "source" / "b" / "two.npy", np.random.default_rng(1).normal(size=(50, 3)))
    prepare(tmp_path / "source", tmp_path / "out", split=(1, 0, 0), workers=1)
    said = capsys.readouterr().out
    assert "note: too small to measure: test has 0" in said


def test_a_set_of_no_clouds_is_told(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "source" / "none.npy", np.zeros((0, 40, 3), np.float32))
    with pytest.raises(
        ValueError, match=r"^source must hold readable shapes, got 1 .*float32 of \(0, 40, 3\)$"
    ):
        prepare(tmp_path / "source", tmp_path / "out", workers=0)
