"""The log has each step once, whatever happened to the run or the disk."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditmoe.training import Recorder
from tests.subjects import ROOT


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def log(folder: Path, start: int, stop: int) -> None:
    with Recorder(folder, start) as recorder:
        for step in range(start + 1, stop + 1):
            recorder.write({"step": step, "loss": 0.5, "skipped": [{"step": step}]})


@pytest.mark.parametrize("torn", [b"", b"{", b'{"step": 8', b'{"step": 8}', b"\0\0\0\n", b"[1]\n"])
def test_a_run_that_goes_on_has_each_step_once(tmp_path: Path, torn: bytes) -> None:
    log(tmp_path, 0, 7)
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(torn)
    log(tmp_path, 5, 9)
    assert steps(tmp_path) == list(range(1, 10))
    log(tmp_path, 0, 2)  # killed before its first checkpoint
    assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        '{"time": "12:00", "message": "ready"}\n',
        '{"step": 1, "loss": 0.5}\n',
        '{"step": 1, a diary\n',
        "a diary\n",
        "no line",
    ],
)
def test_a_log_of_somebody_else_is_not_cut(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]*log\.jsonl must be the log of a run, or not exist[^\n]*$"):
        log(tmp_path, 0, 2)
    assert (tmp_path / "log.jsonl").read_text() == text


def test_nothing_is_lost_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    room = 20
    write = os.pwrite

    def pwrite(handle: int, data: bytes, offset: int) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(handle, data[:room], offset)
        room -= written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    with Recorder(tmp_path, 0) as recorder:
        for step in (1, 2, 3):
            recorder.write({"step": step})
        with pytest.raises(OSError, match="No space"):
            recorder.flush()
        room = 10**6
        recorder.write({"step": 4})
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("No space left") == 1


LIMITED = """
import resource, signal, sys
from pathlib import Path
from ditmoe.training import Recorder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
with Recorder(Path(), 0) as recorder:
    for step in range(1, 4):
        recorder.write({"step": step, **{f"value {number}": 0.5 for number in range(300)}})
"""


@pytest.mark.parametrize("size", [5, 20000])  # not even the first event; some of them
def test_tensorboard_on_a_full_disk_is_told_in_one_line(size: int, tmp_path: Path) -> None:
    """Its thread fails, of which Python prints a trace."""
    words = [sys.executable, "-c", LIMITED, str(size)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1  # its end may be missing, since that thread is not waited for
    assert "cannot be written" in done.stderr


def test_a_screen_that_cannot_be_written_to_ends_nothing() -> None:
    code = (
        "import sys; from ditmoe.distributed import say; say('a' * 10**6); print('went on', file=sys.stderr)"
    )
    with open("/dev/full", "w") as screen:
        done = subprocess.run([sys.executable, "-c", code], stdout=screen, stderr=subprocess.PIPE, text=True)
    assert "went on" in done.stderr
