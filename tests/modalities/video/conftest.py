"""What tests of videos share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.modalities.video.videos import FILES, make, truncate


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes each file once, by name."""
    folder, made = tmp_path_factory.mktemp("videos"), {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = FILES[name](folder / name)
        return made[name]

    return get


@pytest.fixture(scope="module")
def ucf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of four videos in the layout of UCF-101; frames of video v count from 20 v."""
    root = tmp_path_factory.mktemp("ucf")
    for c, name in enumerate(("Archery", "Biking", "Diving")):
        for v in range(4):
            (root / name).mkdir(exist_ok=True)
            video = root / name / f"v_{name}_g{v + 1:02d}_c01.avi"
            make(video, "mpeg4", num=20, first=20 * (4 * c + v) % 256)
    return root


@pytest.fixture
def damaged(ucf: Path, tmp_path: Path) -> Path:
    """The same set with a text, a truncated and a short video among the four of the first class."""
    root = tmp_path / "damaged"
    shutil.copytree(ucf, root)
    _, second, third, fourth = sorted((root / "Archery").iterdir())
    second.write_text("no video")
    third.write_bytes(truncate(third, 0.9).read_bytes())
    (root / "Archery" / f"cut-{third.name}").unlink()
    make(fourth, "mpeg4", num=3)
    return root
