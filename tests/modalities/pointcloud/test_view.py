"""Viewing: a window where there is one, else a picture and one line that says so; never a crash."""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

view = importlib.import_module("modalities.pointcloud.viz.view")


@pytest.fixture(autouse=True)
def _no_display(monkeypatch):
    for key in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(view.sys, "platform", "linux")


@pytest.fixture
def without_open3d(monkeypatch):
    monkeypatch.setattr(view.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("chair_0", "chair_1", "table_0"):
        np.savetxt(folder / f"{name}.xyz", rng.normal(size=(40, 3)))
    return folder


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert np.asarray(image).std() > 1
        return image.size


def fake_open3d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """An installed Open3D whose import runs `program`."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "open3d.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setattr(view.importlib.util, "find_spec", lambda name: object())


def test_without_open3d_the_built_in_renderer_draws(folder, tmp_path, without_open3d):
    said = view.view([folder], tmp_path / "out.png")
    assert said.startswith("Open3D is not installed")
    assert said.endswith(f"drew 3 shapes with the built-in renderer into {tmp_path / 'out.png'}")
    assert "\n" not in said
    assert size(tmp_path / "out.png")[0] > 160


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise ImportError('libEGL.so.1: cannot open shared object file')", "libEGL.so.1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit status -11"),
        ("import time; time.sleep(60)", "no picture after 0.2 s"),
        ("import sys; sys.exit(0)", "exit status 0"),
    ],
)
def test_an_open3d_that_fails_takes_nothing_with_it(folder, tmp_path, monkeypatch, program, reason):
    fake_open3d(tmp_path, monkeypatch, program)
    if "sleep" in program:
        monkeypatch.setattr(view, "OFFSCREEN_SECONDS", 0.2)
    said = view.view([folder], tmp_path / "out.png")
    assert said.startswith("Open3D cannot draw here (")
    assert reason in said
    assert "\n" not in said
    size(tmp_path / "out.png")


def test_a_window_that_does_not_open_is_followed_by_a_picture(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":nowhere")
    monkeypatch.setattr(view.importlib.util, "find_spec", lambda name: object())
    tried = []

    def open3d(scene: Path, picture: Path | None) -> str | None:
        tried.append(picture is None)
        if picture is None:
            return "no OpenGL window"
        Image.fromarray(np.eye(40, dtype=np.uint8) * 200).save(picture)
        return None

    monkeypatch.setattr(view, "_open3d", open3d)
    said = view.view([folder], tmp_path / "out.png")
    assert tried == [True, False]
    assert said.startswith(
        "Open3D's window did not open (no OpenGL window): drew 3 shapes with Open3D off-screen"
    )
    assert size(tmp_path / "out.png") == (40, 40)


def test_with_a_window_nothing_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    monkeypatch.setattr(view.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(view, "_open3d", lambda scene, picture: None)
    assert view.view([folder], tmp_path / "out.png") == "showed 3 shapes in Open3D's window"
    assert not (tmp_path / "out.png").exists()


def test_the_picture_lies_beside_what_it_shows(folder, without_open3d):
    view.view([folder])
    size(folder / "view.png")
    view.view([folder / "chair_0.xyz"])
    size(folder / "chair_0.view.png")
    view.view([folder])
    (folder / "view.png").write_bytes(b"a photo")
    with pytest.raises(
        ValueError, match=r"view\.png is no picture of ditmoe: name the file to write with --out$"
    ):
        view.view([folder])
    assert (folder / "view.png").read_bytes() == b"a photo"
    view.view([folder], folder / "view.png")


def test_an_unreadable_file_is_named_and_left_out(folder, tmp_path, without_open3d):
    (folder / "broken.xyz").write_text("no numbers\nat all\n")
    said = view.view([folder, tmp_path / "absent.ply"], tmp_path / "out.png")
    assert "drew 3 shapes" in said
    assert "left out" in said
    assert "broken.xyz" in said
    assert "absent.ply" in said
    assert "\n" not in said


def test_nothing_readable_is_one_sentence(tmp_path):
    (tmp_path / "broken.xyz").write_text("no numbers")
    with pytest.raises(
        ValueError, match=r"view must be given at least one readable cloud, got .*broken\.xyz"
    ):
        view.view([tmp_path / "broken.xyz"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no cloud or mesh in this folder"):
        view.view([tmp_path / "empty"])
    with pytest.raises(ValueError, match="no file"):
        view.view([])


def test_a_set_in_one_file_is_many_shapes_with_their_labels(tmp_path):
    points = np.random.default_rng(0).normal(size=(3, 20, 3)).astype(np.float32)
    np.savez(tmp_path / "set.npz", points=points, labels=np.array([2, 0, 2]))
    shapes, errors = view._read([tmp_path / "set.npz"])
    assert not errors
    assert [shape.name for shape in shapes] == ["set 0", "set 1", "set 2"]
    assert view._classes(shapes) == [2, 0, 2]


def test_a_sample_in_two_formats_is_shown_once(tmp_path):
    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.save(tmp_path / "chair.npy", points)
    np.savetxt(tmp_path / "chair.xyz", points)
    assert len(view._files(tmp_path)) == 1


def test_a_mesh_is_shown_by_its_surface(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    shapes, _ = view._read([tmp_path / "a.obj"])
    assert len(shapes[0].points) == view.MESH_POINTS


def test_more_shapes_than_fit_are_counted(tmp_path, without_open3d, monkeypatch):
    monkeypatch.setattr(view, "MAX_SHAPES", 2)
    np.save(tmp_path / "set.npy", np.random.default_rng(0).normal(size=(5, 9, 3)).astype(np.float32))
    assert "the first 2 of 5 shapes" in view.view([tmp_path / "set.npy"])


def test_the_scene_has_every_point_at_one_size(folder, tmp_path):
    shapes, _ = view._read([folder])
    view._write_scene(shapes, tmp_path / "scene.npz")
    with np.load(tmp_path / "scene.npz") as scene:
        parts = np.split(scene["points"], scene["ends"][:-1])
        assert scene["colors"].shape == scene["points"].shape
        assert 0 <= scene["colors"].min() <= scene["colors"].max() <= 1
    assert [len(part) for part in parts] == [40, 40, 40]
    np.testing.assert_allclose([np.linalg.norm(np.ptp(part, axis=0)) for part in parts], 1, rtol=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="off-screen drawing is for Linux without a display")
def test_open3d_draws_without_a_display(folder, tmp_path):
    pytest.importorskip("open3d", exc_type=ImportError)
    said = view.view([folder], tmp_path / "out.png")
    assert said == f"there is no display: drew 3 shapes with Open3D off-screen into {tmp_path / 'out.png'}"
    width, height = size(tmp_path / "out.png")
    assert width >= 640
    assert height >= 480
    assert "DISPLAY" not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux names its display in the environment")
def test_a_display_that_cannot_be_reached_is_not_waited_for(folder, tmp_path, monkeypatch):
    """Open3D then draws unseen, and its window would never close."""
    pytest.importorskip("open3d", exc_type=ImportError)
    monkeypatch.setenv("DISPLAY", ":7777")
    run = view.subprocess.run
    monkeypatch.setattr(view.subprocess, "run", lambda *a, **k: run(*a, **{**k, "timeout": 30}))
    said = view.view([folder], tmp_path / "out.png")
    assert said.startswith("Open3D's window did not open (Error: no OpenGL window on this display)")
    size(tmp_path / "out.png")
