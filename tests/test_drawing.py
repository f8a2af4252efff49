"""The bar of the sampler."""

from pathlib import Path
from typing import Any

import pytest

from ditmoe.inference import drawing
from ditmoe.sample import sample_checkpoint


def test_an_error_stands_on_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, on_step: Any, **__: Any) -> None:
        on_step()
        raise ValueError("samples are no longer finite")

    monkeypatch.setattr(drawing, "denoise", fails)
    with pytest.raises(ValueError, match="no longer finite") as caught:
        sample_checkpoint("starter/image", num=1, out=str(tmp_path / "out"))
    shown = capsys.readouterr().err
    assert caught.tb  # keeps what was at work, as a command does until it has told of the error
    assert "sampling:" in shown
    assert not shown.rpartition("\r")[2].strip()  # the bar was taken away
