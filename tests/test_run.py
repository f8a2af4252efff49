"""`./run` hands on a person's words, and adds what is missing for a first try."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.pages import ROOT, ours


@pytest.mark.parametrize(
    ("words", "handed"),
    [
        ([], ["checkpoint=starter/pointcloud", "num=9"]),
        (["seed=3"], ["checkpoint=starter/pointcloud", "seed=3", "num=9"]),
        (["num=2"], ["checkpoint=starter/pointcloud", "num=2"]),
        (["checkpoint=runs/mine"], ["checkpoint=runs/mine"]),
    ],
)
def test_a_first_sample_is_small(words: list[str], handed: list[str], tmp_path: Path) -> None:
    """32 shapes took over a minute of processor time; a person's own number or checkpoint goes before."""
    for name in ("run", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    stamped = "cat pyproject.toml constraints.txt run | cksum"
    stamp = subprocess.run(["sh", "-c", stamped], cwd=tmp_path, capture_output=True, text=True, check=True)
    (tmp_path / ".venv" / ".stamp").write_text(stamp.stdout)
    done = subprocess.run([tmp_path / "run", "sample", *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["-m", "ditmoe.sample", *handed]
    assert ours(["./run", "sample", *words]) == ("ditmoe.sample", *handed)
