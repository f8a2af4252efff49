"""Files that take long to show: together they take no longer than others, and what is left out is said."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditmoe.outside import Patience
from modalities.image import view as pictures
from modalities.image.data.picture_sets import read_set as read_pictures
from modalities.image.metrics.features import read_reference
from modalities.pointcloud.data.formats import read_set as read_clouds
from modalities.pointcloud.viz import view as clouds
from modalities.video import view as clips
from modalities.video.data.clip_folders import read_set as read_clips
from modalities.video.io import container
from tests.hostile.pictures import png
from tests.hostile.videos import gif
from tests.reporting.test_reading import make_run, reported


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is time for two files."""
    asked = iter([False, False])
    monkeypatch.setattr(Patience, "is_over", property(lambda _: next(asked, True)))
    monkeypatch.delenv("DISPLAY", raising=False)


def test_time_grows_with_what_files_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    (tmp_path / "a").write_bytes(bytes(10**6))
    patience = Patience(1.0)
    patience.grow([tmp_path / "a", tmp_path, tmp_path / "nowhere"])
    now[0] = 1.5
    assert not patience.is_over
    now[0] = 1.6
    assert patience.is_over


@pytest.mark.parametrize(
    ("read", "name", "shape"),
    [
        (read_pictures, "arr_0", (300_000, 1, 1, 3)),
        (read_reference, "arr_0", (300_000, 1, 1, 3)),
        (read_clips, "videos", (300_000, 1, 1, 1, 3)),
        (read_clouds, "points", (300_000, 1, 3)),
    ],
)
def test_a_small_file_is_no_set_of_millions(
    read: Callable[[Path], object], name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Each of which would be measured, made or shown."""
    file, arrays = tmp_path / "a.npz", dict[str, Any]()
    np.savez_compressed(file, **arrays | {name: np.zeros(shape, np.uint8)})
    with pytest.raises(ValueError, match=r"16 bytes of its file for each sample, got 300000 in \d+ bytes"):
        read(file)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["pictures", "clouds", "clips"])
def test_what_there_is_no_time_for_is_left_out(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shows, ending, content = {
        "pictures": (pictures.view, "png", png()),
        "clouds": (clouds.view, "xyz", b"0 0 0\n1 0 0\n0 1 0\n0 0 1\n"),
        "clips": (clips.view, "gif", gif(16, 16, 3)),
    }[kind]
    for number in range(5):
        (tmp_path / f"{number}.{ending}").write_bytes(content)
    said = shows([tmp_path], tmp_path / "sheet.png") + capsys.readouterr().err
    assert "2 " in said
    assert "3 more are left out: those before them took too long for their size" in said
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.usefixtures("impatient")
def test_a_page_has_the_samples_for_which_there_was_time(tmp_path: Path) -> None:
    found = reported(make_run(tmp_path / "run"))
    assert (len(found["sets"][0]["items"]), found["sets"][0]["total"]) == (2, 4)
    assert found["notes"] == ["samples: some are left out, as those before them took too long for their size"]


def test_frames_of_a_clip_are_decoded_for_all_of_its_sheet_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Each of them may be the last of thousands."""
    monkeypatch.setattr(container, "DENSE", 1)
    (tmp_path / "a.gif").write_bytes(gif(64, 64, 200))
    with pytest.raises(ValueError, match="no video could be read"):
        clips.view([tmp_path], tmp_path / "sheet.png")
    assert "over 1 pixels a byte" in capsys.readouterr().err
    (tmp_path / "a.gif").write_bytes(gif(64, 64, 50))
    assert "1 clips" in clips.view([tmp_path], tmp_path / "sheet.png")
