"""Threads follow the cores that others leave."""

from dataclasses import replace
from pathlib import Path

import pytest

from ditmoe.distributed import threads
from ditmoe.distributed.threads import SpareThreads, busy_seconds, share_cores, threads_for
from tests.training.test_trainer import trainer


class Machine:
    """Cores of which others keep `others` busy; the process takes one for each of its threads."""

    def __init__(self, cores: int) -> None:
        self.time = self.all = self.own = 0.0
        self.threads = cores
        self.share = SpareThreads(
            lambda: self.all, lambda: self.own, lambda: self.time, (lambda: self.threads, self.set_threads)
        )

    def set_threads(self, number: int) -> None:
        self.threads = number

    def run(self, others: float, seconds: float) -> int:
        """Steps of a quarter of a second; returns the threads after them."""
        for _ in range(round(seconds * 4)):
            self.time += 0.25
            self.own += 0.25 * self.threads
            self.all += 0.25 * (self.threads + others)
            self.share()
        return self.threads


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_threads_are_the_cores_that_others_leave_and_come_back() -> None:
    machine = Machine(4)
    assert [machine.run(others, 4) for others in (0.0, 1.0, 3.0, 9.0, 0.1, 0.6)] == [4, 3, 1, 1, 4, 3]


def test_a_gust_takes_threads_at_once_and_a_lull_gives_none() -> None:
    machine = Machine(2)
    machine.run(0.0, 3)
    assert machine.run(1.0, 1.25) == 1
    assert machine.run(0.0, 1.25) == 1
    assert machine.run(0.0, 1) == 2


def test_never_less_than_one_and_never_more_than_there_are() -> None:
    for cores in range(1, 9):
        for others in range(-1, 12):
            assert 1 <= threads_for(cores, others) <= cores


def test_what_is_set_by_hand_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(4)
    machine.run(0.0, 2)
    machine.threads = 3
    assert machine.run(2.0, 3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert Machine(4).run(2.0, 3) == 4


def test_held_threads_stay_and_go_on_following_after_it() -> None:
    machine = Machine(4)
    machine.run(0.0, 2)
    with machine.share.held():
        assert machine.run(3.0, 3) == 4
    assert machine.run(3.0, 3) == 1


@pytest.mark.parametrize("option", ["deterministic", "compile"])
def test_a_run_that_is_to_be_repeated_or_is_compiled_keeps_its_threads(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In previews, too, which draw as `sample` does."""
    run, _ = trainer(tmp_path, "trainer.steps=1")
    run.options, seen = replace(run.options, **{option: True}, preview_every=1), []
    monkeypatch.setattr(share_cores, "on", True)
    run.preview = lambda model, file: seen.append(share_cores.on)
    run.run()
    assert seen == [False]
    assert share_cores.on


def test_without_statistics_nothing_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(threads, "STATISTICS", tmp_path / "stat")
    machine = Machine(4)
    machine.share.busy = busy_seconds
    assert machine.run(3.0, 3) == 4
    (tmp_path / "stat").write_text("cpu what is this\n")
    with pytest.raises(ValueError, match="what"):
        busy_seconds()
    (tmp_path / "stat").write_text("cpu  100 200 300 5000 6000 10 20 30 7 7\n")
    assert busy_seconds() > 0
