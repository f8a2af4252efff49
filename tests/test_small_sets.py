"""A handful of a person's own files: a run says what it understood of them, ends well, and says what to type next."""

import shlex
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditmoe import train
from ditmoe.outside import TooFewError
from modalities.image.data import picture_sets
from modalities.pointcloud import Clouds
from modalities.pointcloud.data import formats
from modalities.pointcloud.data.prepare import prepare
from modalities.video.data import clip_folders
from modalities.video.io.writer import write_ffv1
from tests import warm

TINY = ["model=debug", "trainer.steps=1", "trainer.batch_size=2", "trainer.preview_every=0", "sampling.steps=1",
        "finish.num=2"]  # fmt: skip


def pictures(root: Path, num: int) -> list[str]:
    for i in range(num):
        root.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)).save(
            root / f"{i}.png"
        )
    return ["modality=image", f"modality.data.root='{root}'", "modality.size=[16,16]"]


def clips(root: Path, num: int) -> list[str]:
    for i in range(num):
        frames = np.random.default_rng(i).integers(0, 256, (9, 16, 16, 3), np.uint8)
        write_ffv1(root / "a" / f"{i}.mkv", frames, 8)
    return ["modality=video", f"modality.data.root='{root}'", "modality.size=[16,16]", "modality.frames=5",
            "modality.codec.steps=0", "modality.evaluation.frames=5"]  # fmt: skip


def clouds(root: Path, num: int) -> list[str]:
    for i in range(num):
        root.mkdir(parents=True, exist_ok=True)
        np.save(root / f"{i}.npy", np.random.default_rng(i).normal(size=(99, 3)))
    prepare(root, out := root.parent / "made of them", num_points=99, workers=1)
    return [f"modality.data.root='{out}'", "modality.tokens.resolution=8", "modality.num_points=64"]


@pytest.mark.parametrize(
    ("make", "num", "measured"),
    [(pictures, 10, True), (pictures, 2, False), (clips, 4, True), (clouds, 6, True)],
)
def test_a_run_on_a_handful_ends_well(make, num: int, measured: bool, tmp_path: Path) -> None:
    words = [*make(tmp_path / "my own", num), *TINY]
    found = warm.command("ditmoe.train", *words, "hydra.run.dir=run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    said = found.stdout
    assert f": {num} " in said.split("\n")[0]
    assert "splits   train" in said
    assert "Where things are:" in said
    assert (tmp_path / "run" / "metrics.json").is_file() == measured
    assert ("too small to measure" in said) == ("note: nothing was measured" in said) == (not measured)
    following = shlex.split(said.strip().split("\n")[-1])
    assert set(words) - {"trainer.steps=1"} <= set(following)
    assert {"name=longer", "trainer.steps=4"} <= set(following)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TooFewError("few"), 0),
        (ValueError("odd"), 1),
        (OSError(5, "gone", "a.png"), 1),
        (TypeError("bug"), None),
    ],
)
def test_a_fault_of_measuring_is_no_note_and_loses_nothing(
    error: Exception,
    code: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ditmoe.inference.evaluate_checkpoint", fail)
    options = {"num": 0, "evaluate": True}
    expected: type[BaseException] = TypeError if code is None else SystemExit
    with pytest.raises(expected) if code != 0 else nullcontext() as stopped:
        train.finish(options, tmp_path, "train", 1)
    said, wrong = capsys.readouterr()
    assert "Where things are:" in said
    assert "Next:" in said
    assert ("note: nothing was measured: few" in said) == (code == 0)
    if code == 1:
        assert stopped is not None
        assert stopped.value.code == 1
        assert len(wrong.strip().splitlines()) == 1
        assert wrong.startswith("error: nothing was measured: ")


@pytest.mark.parametrize(
    ("make", "read"),
    [(pictures, picture_sets.read_set), (clips, clip_folders.read_set), (clouds, formats.read_set)],
)
def test_a_folder_that_is_measured_says_what_it_ignores(make, read, tmp_path: Path, capsys) -> None:
    make(folder := tmp_path / "own", 2)
    names = ("a.heic", "b.HEIC", ".DS_Store", "__MACOSX/x.png", "read.me")
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    capsys.readouterr()
    assert len(read(folder)) == 2
    said = capsys.readouterr().out
    assert "3 of a kind that is not read: .heic 2, .me 1" in said
    assert "2 hidden or of a system" in said


def test_clouds_keep_the_splits_that_they_have(tmp_path: Path) -> None:
    """ModelNet's folders in each class, of any spelling; what systems leave behind is counted."""
    for i, name in enumerate(("plane/train/1", "plane/train/2", "plane/Test/3", "car/train/4", "car/Test/5")):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "own" / f"{name}.npy", np.random.default_rng(i).normal(size=(20, 3)))
    for name in ("plane/.DS_Store", "__MACOSX/a/1.npy", "car/read.me"):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(b"x")
    report = prepare(tmp_path / "own", tmp_path / "out", num_points=9, workers=1)
    assert report["counts"] == {
        "plane": {"train": 2, "val": 0, "test": 1},
        "car": {"train": 1, "val": 0, "test": 1},
    }
    assert "from the folders Test (test), train in each class" in report["splits"]
    assert len(report["ignored"]) == 2
    data = Clouds(tmp_path / "own", num_points=9)  # as it is
    assert [data.count(split) for split in ("train", "val", "test")] == [3, 0, 2]
    said = str(data.understood())
    assert "2 hidden or of a system" in said
    assert ".me 1" in said
