"""A few kills and failing writes; `python -m tests.faults` has a hundred."""

from pathlib import Path

from tests.faults import KILLS, suite


def test_nothing_is_lost_and_the_curve_is_the_same(tmp_path: Path) -> None:
    wanted = [*KILLS[1:], "SIGTERM", "disk full at an operation"]
    counts = suite(tmp_path, list(wanted), seed=1, options=("trainer.steps=12",))
    assert sum(counts.values()) - counts["runs"] == len(wanted)
