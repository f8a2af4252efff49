"""What tests of videos share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.modalities.video.videos import FILES


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes each file once, by name."""
    folder, made = tmp_path_factory.mktemp("videos"), {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = FILES[name](folder / name)
        return made[name]

    return get
