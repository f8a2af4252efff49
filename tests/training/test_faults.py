"""A few kills and failing writes of each command; `python -m tests.faults` has hundreds."""

from pathlib import Path

import pytest

from tests.fault_works import WORKS
from tests.faults import KILLS, suite
from tests.full_disks import each_full_disk

FEW = ("kill at an operation", "kill within a file", "files too large", "disk full at an operation")


def test_nothing_of_a_run_is_lost_and_the_curve_is_the_same(tmp_path: Path) -> None:
    wanted = [*KILLS[1:], "SIGTERM", "closed terminal", "disk full at an operation"]
    counts = suite(WORKS["train"](tmp_path), tmp_path, list(wanted), seed=1)
    assert sum(counts.values()) - counts["runs"] == len(wanted)


@pytest.mark.parametrize(
    "name",
    ["convert", "convert-moved", "export", "clouds-again", "images-again", "evaluate", "analyze", "mesh"],
)
def test_what_a_command_writes_is_whole_or_not_there(tmp_path: Path, name: str) -> None:
    counts = suite(WORKS[name](tmp_path), tmp_path, list(FEW), seed=2)
    assert sum(counts.values()) - counts["runs"] == len(FEW)


@pytest.mark.parametrize("name", ["report", "view"])
def test_wherever_the_disk_is_full_a_page_is_the_old_one_or_the_new_one(tmp_path: Path, name: str) -> None:
    assert each_full_disk(WORKS[name](tmp_path), tmp_path)["failed"] >= 4
