"""A small run and the pipeline of it, which all tests of this folder look at."""

from pathlib import Path

import pytest

from ditmoe.export import export
from tests.modalities.image.test_adapter import trained


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    trained(folder)
    return folder


@pytest.fixture(scope="session")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pipes") / "digits"
    export(run, out)
    return out
