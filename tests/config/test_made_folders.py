"""What Hydra made for a command that is refused goes; what was there, or is another's, stays."""

from pathlib import Path

import pytest

from ditmoe import checkpoint
from ditmoe.config.made_folders import empty_folders, leaving_none_empty


def test_only_empty_folders_that_were_not_there_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    before = empty_folders(Path("runs"))
    run = tmp_path / "runs" / "image" / "a"
    run.mkdir(parents=True)
    with pytest.raises(ValueError, match="refused"), leaving_none_empty(run, before):
        raise ValueError("refused")
    assert [*tmp_path.rglob("*")] == [tmp_path / "runs"]
    run.mkdir(parents=True)
    with leaving_none_empty(run, before):
        (run / "log.jsonl").write_text("{}")
    assert (run / "log.jsonl").exists()


def test_a_folder_that_another_trains_in_stays(tmp_path: Path) -> None:
    with checkpoint.exclusive_lock(tmp_path / "run"):
        with leaving_none_empty(tmp_path / "run"):
            pass
        assert (tmp_path / "run").is_dir()
