"""What is printed: a screen that fails changes nothing of the work, and no name reaches it as a command."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from ditmoe.config.screen import Screen
from tests.subjects import ROOT

WORK = """
import sys
from pathlib import Path
from ditmoe.config.errors import guard

def work():
    for number in range(int(sys.argv[1])):
        print("line", number)
    Path("done").touch()
    if len(sys.argv) > 2:
        raise ValueError(sys.argv[2])

guard(work)
"""


@pytest.mark.parametrize("lines", ["1", "100000"])
@pytest.mark.parametrize(
    ("where", "told"),
    [("> /dev/full", "stdout cannot be written: No space left on device; the work goes on\n"),
     (">&-", ""), ("| head -n 1 > /dev/null", ""), ("> /dev/full 2>&1", ""), (">&- 2>&-", ""),
     ("2>&- > /dev/null", "")],
)  # fmt: skip
def test_the_work_goes_on_whatever_becomes_of_the_screen(
    tmp_path: Path, where: str, told: str, lines: str
) -> None:
    def run(*words: str) -> tuple[str, int]:
        (tmp_path / "done").unlink(missing_ok=True)
        line = f'set -o pipefail; "$0" -c "$1" {lines} {" ".join(words)} {where}'
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-c", line, sys.executable, WORK],
                              cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)  # fmt: skip
        assert (tmp_path / "done").exists()
        return done.stderr, done.returncode

    assert run() == (told, 0)
    said, code = run("wrong")
    assert code == 2
    if "2>" not in where:
        assert sorted(said.splitlines()) == sorted([*told.splitlines(), "error: wrong"])


def test_results_are_written_before_they_are_printed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", points=np.random.default_rng(0).normal(size=(3, 32, 3)))
    words = ["modality=pointcloud", "generated=a.npz", "reference=a.npz", "out=m",
             "modality.evaluation.cache=null", "modality.evaluation.emd_points=16"]  # fmt: skip
    with open("/dev/full", "w") as screen:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-m", "ditmoe.evaluate", *words]
        done = subprocess.run(
            line, cwd=tmp_path, stdout=screen, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("stdout cannot be written: No space left on device; the work goes on\n")
    assert (tmp_path / "m" / "metrics.json").is_file()


def test_controls_are_shown_and_layout_stays() -> None:
    stream = io.StringIO()
    print("a\x1b[2J\x07\x9b\u202eb\udce9", "Стул\t椅子\r", file=Screen(stream))
    assert stream.getvalue() == "a\\x1b[2J\\x07\\x9b\\u202eb\\xe9 Стул\t椅子\r\n"


def test_what_an_encoding_has_not_is_an_escape() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("é", file=Screen(stream), flush=True)
    assert stream.buffer.getvalue() == b"\\xe9\n"
    assert Screen(stream).encoding == "ascii"


def test_bars_draw_as_ever() -> None:
    drawn = []
    for wrap in (Screen, lambda stream: stream):
        stream = io.StringIO()
        for _ in tqdm(
            range(3), file=wrap(stream), bar_format="{bar}{n}", ncols=20, mininterval=0, leave=False
        ):
            for _ in tqdm(range(2), file=wrap(stream), bar_format="{bar}{n}", ncols=20, mininterval=0):
                pass
        drawn.append(stream.getvalue())
    assert drawn[0] == drawn[1]
    assert "\x1b[A" in drawn[0]
