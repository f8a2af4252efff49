"""A few wrong numbers and bare surroundings for commands; `tests.command_numbers` and `tests.surroundings` have all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("module", "share"), [("command_numbers", "0.002"), ("surroundings", "0.07")])
def test_commands_end_in_success_or_in_one_line(module: str, share: str) -> None:
    """In processes of their own, without the tests' checks of types."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.{module}", "--share", share, "--seed", "1"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
