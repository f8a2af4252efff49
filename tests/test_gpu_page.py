"""The page of `benchmarks/gpu.sh`: parts end at their limits, and it says so."""

import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import PARTS, TOTAL, Part

SLEEP = "timeit -n 1 -r 1 __import__('time').sleep(60)"


def test_a_part_is_killed_at_its_limit_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "gpu.md"), "--cpu-smoke"])
    monkeypatch.setattr(gpu, "machine", lambda: ["- a machine"])
    monkeypatch.setattr(gpu, "FEWEST", 1.0)
    parts = [("quick", "this", 20.0), ("slow", SLEEP, 1 / 3), ("wrong", "nowhere", 20.0)]
    start = time.monotonic()
    gpu.main(tuple(Part(title, command, limit, command) for title, command, limit in parts))
    page = (tmp_path / "gpu.md").read_text()
    assert time.monotonic() - start < 30
    assert "Beautiful is better than ugly." in page
    assert "**killed at its limit of 1 s**" in page
    assert "**failed with exit code 1**" in page
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## quick",
        "## slow",
        "## wrong",
    ]


def test_what_has_no_time_left_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "gpu.md")])
    monkeypatch.setattr(gpu, "machine", lambda: ["- a machine"])
    gpu.main((Part("late", SLEEP, 60.0, SLEEP),), total=1.0)
    assert "**not run**" in (tmp_path / "gpu.md").read_text()


def test_all_parts_have_room() -> None:
    *measured, training = PARTS
    assert TOTAL <= 480
    assert sum(part.limit for part in measured) + 180 <= TOTAL  # what is left for the training, at the least
    assert training.limit == 240
