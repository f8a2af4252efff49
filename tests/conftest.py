"""Shapes in annotations are checked while the tests run; free in production."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

from tests import typecheck  # noqa: F401  (the hook looks it up as an attribute)

os.environ.setdefault("OMP_NUM_THREADS", "1")
hook = install_import_hook(["ditmoe", "modalities"], "tests.typecheck.check")
hook.__enter__()


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    """Numbers that others' reference code computed; they lie beside the checkout, not in it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "golden"

    def load(name: str):
        import numpy as np

        if not (folder / name).is_file():
            pytest.skip(f"{name} is not beside this checkout (../shared/golden)")
        return np.load(folder / name, allow_pickle=False)

    return load


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
