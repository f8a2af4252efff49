"""A job that ends, fills or stops its process costs itself alone, and is one error."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from modalities.shared.isolation import isolated
from tests.subjects import ROOT

ENDLESS = """
import os, time
from modalities.shared.isolation import run_isolated

def work(job):
    os.write(1, f"{os.getpid()} ".encode())
    time.sleep(60)

list(run_isolated(work, [0, 1], 2, lambda job: 60))
"""


class Panic(BaseException):
    """As PyO3 has it."""


def panic() -> None:
    os.write(2, b"thread panicked\n")
    raise Panic("capacity overflow")


def printing() -> int:
    print("said", flush=True)
    os.write(1, b"by a library\n")
    return os.getpid()


def loaded() -> list[str]:
    return sorted(sys.modules)


@pytest.mark.parametrize(
    ("work", "error", "told"),
    [
        (os.abort, ChildProcessError, "ended its process"),
        (partial(time.sleep, 60), TimeoutError, "more than 0.5 seconds"),
        (panic, RuntimeError, "Panic: capacity overflow"),
        (partial(np.ones, 2**30), RuntimeError, "MemoryError"),
        (partial(int, "x"), ValueError, "invalid literal"),
    ],
)
def test_what_ends_its_process_is_an_error(
    work: Callable[[], object], error: type[Exception], told: str, capfd: pytest.CaptureFixture
) -> None:
    with pytest.raises(error, match=told):
        isolated(work, 0.5 if error is TimeoutError else 30, 2**28)
    assert capfd.readouterr().err == ""
    assert isolated(partial(int, "7"), 30, 2**28) == 7


def test_what_is_made_comes_back() -> None:
    assert isolated(partial(np.arange, 10**6), 30, 2**28).sum() == (10**6 - 1) * 10**6 // 2


def test_jobs_share_a_process_that_is_no_copy_of_this_one() -> None:
    """Which may have threads, of which a copy has none but what they held."""
    first, second = (isolated(printing, 30, 2**28) for _ in range(2))
    assert first == second != os.getpid()
    assert "torch" not in isolated(loaded, 30, 2**28)


def test_threads_have_a_process_each() -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(isolated(partial(_slow, 0.3), 30, 2**28)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 3


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path) -> None:
    """Where commands with -P, scripts and notebooks do not look, and strangers' files may lie."""
    for name in ("json", "pickle", "numpy"):
        (tmp_path / f"{name}.py").write_text("open('PWNED', 'w')\n")
    code = """if True:
        import os
        from modalities.shared.isolation import isolated
        print(isolated(os.getpid, 30, 2**28) != os.getpid())
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "True\n", done.stderr
    assert not (tmp_path / "PWNED").exists()


def _slow(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_processes_end_with_the_one_that_asks() -> None:
    """Also where it is killed, and whatever they do then."""
    code = """if True:
        import os, signal, time, threading
        from functools import partial
        from modalities.shared.isolation import isolated
        print(isolated(os.getpid, 30, 2**28), flush=True)
        threading.Thread(target=isolated, args=(partial(time.sleep, 60), 1, 2**28), daemon=True).start()
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pid, until = int(done.stdout), time.monotonic() + 10
    while time.monotonic() < until and os.path.exists(f"/proc/{pid}"):
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.skipif(sys.platform != "linux", reason="only there processes can be copied")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_end_with_who_waits_for_them(number: int) -> None:
    """Else they would work on, and keep the lock of its folder."""
    line = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE) as process:
        told = b""
        while told.count(b" ") < 2:
            told += os.read(process.stdout.fileno(), 100)
        process.send_signal(number)
        began = time.monotonic()
        process.stdout.read()  # until the last one that has it ends
    assert time.monotonic() - began < 30
