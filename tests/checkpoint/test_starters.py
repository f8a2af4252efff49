"""The models that come with the package open like any other, and stay as they are."""

from pathlib import Path

import pytest
import torch

from benchmarks.starters import pack
from ditmoe import checkpoint
from ditmoe.checkpoint.places import STARTERS
from ditmoe.config import command_line
from ditmoe.config.restore import restore
from ditmoe.inference import sample_checkpoint

NAMES = ("image", "pointcloud", "video")


def state() -> dict[Path, tuple[int, int]]:
    return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in STARTERS.rglob("*")}


def test_all_are_there_and_together_small() -> None:
    assert sorted(folder.name for folder in STARTERS.iterdir() if folder.is_dir()) == sorted(NAMES)
    assert sum(file.stat().st_size for file in STARTERS.rglob("*") if file.is_file()) < 6 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_one_draws_and_leaves_the_package_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state()
    monkeypatch.chdir(tmp_path)
    paths = sample_checkpoint(f"starter/{name}", num=1, steps=1, guidance=1.0)
    assert paths
    assert paths[0].is_relative_to(Path("runs", "starter", name))
    assert state() == before
    assert restore(f"starter/{name}").modality.name == name


def test_a_name_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="starter/image, starter/pointcloud, starter/video"):
        command_line.check_paths({"checkpoint": "starter/cloud"})
    for lies_elsewhere in ("starter/../starters", "starter/", "starter/image/ema.safetensors"):
        with pytest.raises((FileNotFoundError, ValueError)):
            checkpoint.find(lies_elsewhere)


def test_a_folder_of_one_s_own_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("starter/image").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="folder starter/image holds none"):
        checkpoint.find("starter/image")


def test_a_run_is_packed_to_what_it_draws_from(tmp_path: Path) -> None:
    run, found = tmp_path / "run", checkpoint.find("starter/image")
    parts = {name: found.part(name) for name in ("ema", "facts", "config")}
    parts["ema"] = {name: value.float() + 1e-4 for name, value in parts["ema"].items()}
    checkpoint.save(run, 3, {**parts, "optimizer": {"a": torch.zeros(9)}, "step": 3})
    (run / "log.jsonl").write_text('{"step": 50, "loss": 1.5, "load/3/0": 0.1}\n' * 500)
    (run / "metrics.json").write_text('{"fd/pixels": 0.3}')
    made = checkpoint.find(pack(run, tmp_path / "into"))
    assert made.plain["step"] == 3
    assert set(made.plain) == {"ema", "facts", "config", "step"}
    for name, value in parts["ema"].items():
        assert torch.equal(made.part("ema")[name], value.half())
    assert len((made.path / "log.jsonl").read_text().splitlines()) <= 100


def test_a_folder_that_is_not_there_is_no_starter() -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint must be a run's folder"):
        checkpoint.find("nowhere/starters/image")
