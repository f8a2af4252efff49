"""What asks a run to stop: once it stops after the batch at hand, with its workers; a terminal asks only once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ditmoe.training import Stop

RUN = """
import time
from ditmoe.config.errors import guard
from ditmoe.training import Stop
from ditmoe.training.read_ahead import ReadAhead
def read(index):
    return index
def main():
    with (stop := Stop()).listening(), ReadAhead(read, 10**6, 2) as ahead:
        index = ahead(0)
        print("ready", flush=True)
        while not stop.requested and index < 3000:
            index += ahead(index + 1) == index + 1
            time.sleep(0.001)
        assert [ahead(index + i) for i in range(1, 100)] == [*range(index + 1, index + 100)]
        print("saved", stop.requested, flush=True)
if __name__ == "__main__":
    guard(main)
"""

SEMAPHORES = "ignore:resource_tracker"
"""Python's tracker warned once of a semaphore that was removed already, at the end of a run on a busy machine."""


def asked(tmp_path: Path, *numbers: int, shell: str = "") -> tuple[int, str, str]:
    """Exit code and output of a run whose processes all get these signals, as those of a terminal do."""
    (tmp_path / "run.py").write_text(RUN)
    with subprocess.Popen(
        ["sh", "-c", f'{shell}exec "$@"', "sh", sys.executable, str(tmp_path / "run.py")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": SEMAPHORES},
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        time.sleep(
            0.3
        )  # until the line is written: one that is being written keeps what asks to stop from being told
        for number in numbers:
            os.killpg(run.pid, number)
        out, err = run.communicate(timeout=60)
    return run.returncode, out, err


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGHUP] * 2, [signal.SIGTERM, signal.SIGHUP]])
def test_a_run_that_is_asked_to_stop_goes_on_to_its_save(numbers: list[int], tmp_path: Path) -> None:
    code, out, err = asked(tmp_path, *numbers)
    assert (code, err) == (0, "")
    assert out.split("\n")[1:] == [
        "stopping after the current batch (once more to stop at once)",
        "saved True",
        "",
    ]


def test_a_closed_terminal_is_nothing_to_who_was_started_without_one(tmp_path: Path) -> None:
    """As by nohup."""
    assert asked(tmp_path, signal.SIGHUP, shell='trap "" HUP; ') == (0, "saved False\n", "")


def test_a_signal_that_interrupts_a_line_stops_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def reentrant(line: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    monkeypatch.setattr("ditmoe.training.signals.say", reentrant)
    with (stop := Stop()).listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_person_who_asks_twice_does_not_wait(number: int) -> None:
    with (stop := Stop()).listening():
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
