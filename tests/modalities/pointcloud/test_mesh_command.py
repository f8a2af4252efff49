"""Surfaces as files, by `mesh` and `sample meshes=true`: their folder, its record, and turntables beside samples."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditmoe import mesh as command
from ditmoe import sample
from ditmoe.config.restore import restore
from ditmoe.inference import sample_checkpoint
from modalities.pointcloud.data.formats import SURFACES, read_set
from modalities.pointcloud.data.ply import write_ply
from modalities.pointcloud.data.prepare import prepare
from modalities.pointcloud.surface.reconstruct import Options
from modalities.pointcloud.surface.run import RECORDED, check_out, mesh_clouds, write_record
from modalities.pointcloud.viz.render import class_color, render
from modalities.pointcloud.viz.turntable import FRAMES, SIZE
from modalities.pointcloud.viz.view import _files
from tests.modalities.pointcloud.sets import sphere


def run(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mesh", *words, "modality.surface.resolution=16"])
        try:
            command.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "samples", tmp_path / "meshes"
    source.mkdir()
    for i in range(2):
        write_ply(source / f"chair-{i}.ply", sphere(100, i).astype(np.float32), up="y")
        np.save(source / f"chair-{i}.npy", sphere(100, i))
    np.save(source / "flat.npy", sphere(60) * [1, 1, 0])
    np.savez(source / "set.npz", points=np.stack([sphere(90), sphere(90, 1)]))
    (source / "samples.png").write_bytes(b"")
    assert run(f"source={source}", f"out={out}") == 0
    said = capsys.readouterr()
    assert "flat: the points of a surface must not all lie in a plane" in said.err
    names = {"chair-0", "chair-1", "set-0000", "set-0001"}
    assert {path.stem for path in out.glob("*.glb")} == {path.stem for path in out.glob("*.obj")} == names
    record = json.loads((out / "meshes.json").read_text())
    assert record["left_out"] == 1
    assert all(row["watertight"] for row in record["meshes"])
    assert record["meshes"][0]["class"] == "chair"
    (out / "own.txt").write_text("a person's")
    (source / "chair-1.npy").unlink()
    (source / "chair-1.ply").unlink()
    before = (out / "chair-0.glb").read_bytes()
    assert run(f"source={source}", f"out={out}") == 0
    assert {path.stem for path in out.glob("*.glb")} == names - {"chair-1"}
    assert (out / "own.txt").exists()
    assert (out / "chair-0.glb").read_bytes() == before


def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, other, clips = tmp_path / "empty", tmp_path / "other", tmp_path / "clips"
    for folder in (empty, other, clips):
        folder.mkdir()
    (other / "letter.txt").write_text("1 2 3")
    (clips / "clip-0000.mp4").write_bytes(b"no cloud")
    np.save(tmp_path / "ball.npy", sphere(60))
    np.save(tmp_path / "flat.npy", sphere(60) * [1, 1, 0])
    np.savez_compressed(tmp_path / "many.npz", points=np.tile(sphere(20), (257, 1, 1)))  # some KB, minutes
    for source, out, why in (
        (empty, tmp_path / "a", "must hold clouds"),
        (clips, tmp_path / "a", "must hold clouds"),
        (tmp_path / "none", tmp_path / "a", "does not exist"),
        (tmp_path / "flat.npy", tmp_path / "a", "in a plane"),
        (tmp_path / "many.npz", tmp_path / "a", "must hold at most 256 clouds"),
        (tmp_path / "ball.npy", other, "out must be a new folder"),
        (tmp_path / "ball.npy", other / "letter.txt", "out must be a new folder"),
    ):
        assert run(f"source={source}", f"out={out}") == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert why in lines[-1], lines
        assert not (tmp_path / "a").exists(), "nothing is left of it"
    assert [path.name for path in other.iterdir()] == ["letter.txt"]


def test_a_record_of_a_stranger_removes_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "kept.glb").write_bytes(b"")
    out = tmp_path / "meshes"
    out.mkdir()
    (out / "letter.txt").write_text("")
    files = ["../kept.glb", "letter.txt", 7, str(tmp_path / "kept.glb")]
    write_record(out, dict.fromkeys(RECORDED) | {"files": files})
    np.save(tmp_path / "ball.npy", sphere(60))
    mesh_clouds(tmp_path / "ball.npy", out, Options(resolution=16))
    assert (tmp_path / "kept.glb").exists()
    assert (out / "letter.txt").exists()


def test_surfaces_beside_samples_are_no_further_samples(tmp_path: Path) -> None:
    """For none of `evaluate generated=`, `view` and `prepare`; by itself a folder of meshes is one of shapes."""
    np.save(tmp_path / "chair-0000.npy", np.random.default_rng(0).random((40, 3)))
    within = tmp_path / "meshes"
    within.mkdir()
    (within / "chair-0000.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 1\nf 1 2 3\n")
    (within / SURFACES).write_text("{}")
    assert len(read_set(tmp_path)) == len(_files(tmp_path)) == 1
    assert len(read_set(within)) == len(_files(within)) == 1
    for source, ignored in (
        (tmp_path, ["1 meshes that were made of clouds beside them: .obj 1"]),
        (within, []),
    ):
        report = prepare(source, tmp_path.with_name(f"of-{source.name}"), num_points=20, workers=1)
        assert report["made"] == 1
        assert [line for line in report["ignored"] if "made of clouds" in line] == ignored


def test_sample_looks_at_its_folder_for_meshes_before_it_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "meshes").mkdir(parents=True)
    (tmp_path / "out" / "meshes" / "mine.txt").touch()

    def draws(*_: object, **__: object) -> None:
        raise AssertionError("it draws")

    monkeypatch.setattr("ditmoe.inference.drawing.draw", draws)
    with pytest.raises(ValueError, match="out must be a new folder, or one of meshes"):
        sample_checkpoint("starter/pointcloud", num=1, out=tmp_path / "out", meshes=True)


def test_a_call_that_was_killed_leaves_a_folder_that_the_next_takes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    np.save(tmp_path / "ball.npy", sphere(60))
    words = tmp_path / "ball.npy", tmp_path / "meshes", Options(resolution=16)
    with monkeypatch.context() as patch:
        patch.setattr("modalities.pointcloud.surface.run.save_png", killed)
        with pytest.raises(KeyboardInterrupt):
            mesh_clouds(*words)
    assert (tmp_path / "meshes" / "ball.glb").exists()
    assert len(mesh_clouds(*words)) == 3
    (tmp_path / "ball.npy").rename(tmp_path / "globe.npy")
    words = tmp_path / "globe.npy", *words[1:]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)  # of what the call before had written
        with pytest.raises(KeyboardInterrupt):
            mesh_clouds(*words)
    mesh_clouds(*words)
    assert not (tmp_path / "meshes" / "ball.glb").exists()


@pytest.mark.parametrize("record", ["[1]", "7", "{}", '{"files": ["ball.glb"]}'])
def test_a_file_of_the_records_name_is_not_the_record(record: str, tmp_path: Path) -> None:
    (tmp_path / "meshes.json").write_text(record)
    with pytest.raises(ValueError, match=r"meshes\.json must be the record of meshes, got something else$"):
        check_out(tmp_path)


def test_names_that_no_file_has_are_passed_over(tmp_path: Path) -> None:
    write_record(tmp_path, dict.fromkeys(RECORDED) | {"files": ["a\0.png", "\ud800.png"]})
    assert check_out(tmp_path) == set()


def test_a_mesh_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    np.save(tmp_path / "ball.npy", sphere(60))
    words = tmp_path / "ball.npy", tmp_path / "meshes", Options(resolution=16)
    mesh_clouds(*words)
    np.save(tmp_path / "globe.npy", sphere(60))
    (tmp_path / "meshes" / "globe.obj").write_text("mine")
    with pytest.raises(ValueError, match=r"a folder of meshes alone, got .* with another globe\.obj$"):
        mesh_clouds(tmp_path / "globe.npy", *words[1:])
    assert (tmp_path / "meshes" / "globe.obj").read_text() == "mine"
    assert (tmp_path / "meshes" / "ball.obj").exists()
    mesh_clouds(*words)


@pytest.mark.parametrize("out", ["drawn", "drawn.npz"])
def test_sample_draws_clouds_from_all_sides(out: str, tmp_path: Path) -> None:
    """The samples are those without turntables, beside which a GIF and an MP4 show each; it begins as its picture."""
    how = {"num": 1, "steps": 1, "label": "chair", "points": 200}
    sample_checkpoint("starter/pointcloud", out=tmp_path / out, turntable=True, **how)
    place = tmp_path / ("drawn/turntables" if out == "drawn" else "drawn-turntables")
    name = "chair-0000"
    assert {path.name for path in place.iterdir()} == {f"{name}.gif", f"{name}.mp4"}
    points = read_set(tmp_path / out).data[0]
    with Image.open(place / f"{name}.gif") as turn:
        assert (turn.n_frames, turn.size) == (FRAMES, (SIZE, SIZE))
        first = np.asarray(turn.convert("RGB")).astype(float)
    label = restore("starter/pointcloud").modality.classes.index("chair")
    drawn = render(points, SIZE, color=class_color(label), turning=True)
    assert np.abs(first - drawn).mean() < 2  # of 256 colours


def test_samples_without_another_side_are_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sample", "checkpoint=starter/image", "turntable=true"])
    with pytest.raises(SystemExit) as end:
        sample.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: python -m ditmoe.sample turntable=true is for modalities that draw samples from all sides: "
        "image does not (`Turntables`)\n"
    )


def test_a_file_without_a_surface_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(
        ValueError, match=r"^[^\n]* must hold clouds that have a surface: [^\n]*a\.npy: must be"
    ):
        mesh_clouds(tmp_path / "a.npy", tmp_path / "out", Options(16))
    assert capfd.readouterr() == ("", "")
