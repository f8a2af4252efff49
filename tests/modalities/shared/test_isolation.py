"""A job that ends, fills or stops its process costs itself alone, and is one error."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from modalities.shared.isolation import isolated
from tests.subjects import ROOT

ENDLESS = """
import os, sys, time
from modalities.shared.isolation import isolated, run_isolated

def work(job):
    os.write(1, f"{os.getpid()} ".encode())
    time.sleep(60)

if sys.argv[1] == "one":
    isolated(lambda: work(0), 60, 2**28)
else:
    list(run_isolated(work, [0, 1], 2, lambda job: 60))
"""


class Panic(BaseException):
    """As PyO3 has it."""


def panic() -> None:
    os.write(2, b"thread panicked\n")
    raise Panic("capacity overflow")


@pytest.mark.skipif(sys.platform != "linux", reason="only there processes can be copied")
@pytest.mark.parametrize(
    ("work", "error", "told"),
    [
        (lambda: os.abort(), ChildProcessError, "ended its process"),
        (lambda: time.sleep(60), TimeoutError, "more than 0.5 seconds"),
        (panic, RuntimeError, "Panic: capacity overflow"),
        (lambda: np.ones(2**30), RuntimeError, "MemoryError"),
        (lambda: int("x"), ValueError, "invalid literal"),
    ],
)
def test_what_ends_its_process_is_an_error(
    work: Callable[[], object], error: type[Exception], told: str, capfd: pytest.CaptureFixture
) -> None:
    with pytest.raises(error, match=told):
        isolated(work, 0.5 if error is TimeoutError else 30, 2**28)
    assert capfd.readouterr().err == ""


def test_what_is_made_comes_back() -> None:
    assert isolated(lambda: np.arange(10**6), 30, 2**28).sum() == (10**6 - 1) * 10**6 // 2


@pytest.mark.skipif(sys.platform != "linux", reason="only there processes can be copied")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(("kind", "jobs"), [("one", 1), ("several", 2)])
def test_jobs_end_with_who_waits_for_them(kind: str, jobs: int, number: int) -> None:
    """Else they would work on, and keep the lock of its folder."""
    line = [sys.executable, "-c", ENDLESS, kind]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE) as process:
        told = b""
        while told.count(b" ") < jobs:
            told += os.read(process.stdout.fileno(), 100)
        process.send_signal(number)
        began = time.monotonic()
        process.stdout.read()  # until the last one that has it ends
    assert time.monotonic() - began < 30
