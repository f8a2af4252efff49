"""Saving in the background: what is written is what was, failures come out, and the last one is waited for."""

from pathlib import Path

import pytest
import torch

from ditmoe import checkpoint
from ditmoe.checkpoint import Saver
from ditmoe.distributed import ALONE


@pytest.mark.parametrize("background", [False, True])
def test_what_changes_after_is_not_in_it(tmp_path: Path, background: bool) -> None:
    saver, weights = Saver(tmp_path, ALONE, background, keep_last=2), torch.ones(1000)
    for step in (1, 2, 3):
        saver.save(step, {"model": {"w": weights}, "facts": {"classes": ["a"]}})
        weights += 1
    saver.finish()
    assert saver.saved == saver.begun == 3
    assert [f.name for f in sorted((tmp_path / "checkpoints").iterdir())] == ["step-0000002", "step-0000003"]
    found = checkpoint.load(tmp_path)
    assert torch.equal(found["model"]["w"], torch.full((1000,), 3.0))
    assert found["facts"] == {"classes": ["a"]}


@pytest.mark.parametrize("background", [False, True])
def test_a_failure_comes_out_and_the_step_may_be_tried_again(tmp_path: Path, background: bool) -> None:
    saver = Saver(tmp_path, ALONE, background, keep_last=2)
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match="checkpoints"):
        written(saver)
    assert saver.saved == saver.begun == 0
    (tmp_path / "checkpoints").unlink()
    written(saver)
    assert saver.saved == 1


@pytest.mark.parametrize("background", [False, True])
def test_a_step_that_would_replace_a_link_fails_too(tmp_path: Path, background: bool) -> None:
    saver = Saver(tmp_path, ALONE, background, keep_last=2)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-0000001").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a link"):
        written(saver)
    assert saver.saved == saver.begun == 0


def written(saver: Saver) -> None:
    saver.save(1, {"model": {"w": torch.ones(3)}})
    saver.finish()
