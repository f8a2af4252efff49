"""The commands under torchrun: a rank that dies ends all with one line, and the run goes on with fewer ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ditmoe import checkpoint
from ditmoe.training.resume import resume
from tests import warm
from tests.training.test_trainer import TINY, trainer

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = [o for o in TINY if "log_every" not in o] + ["trainer.precision=fp32", "finish.num=0"]


def torchrun(num: int, *words: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={num}",
        "--standalone",
        "-m",
        *words,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks Linux for the processes")
def test_a_rank_that_dies_ends_all_and_fewer_go_on(tmp_path: Path) -> None:
    run = torchrun(
        2, "ditmoe.train", *OPTIONS, "mesh.expert=2", "trainer.steps=100000", "trainer.save_every=2",
        f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    try:
        deadline = time.time() + 120
        while (
            not list((tmp_path / "checkpoints").glob("step-*"))
            and run.poll() is None
            and time.time() < deadline
        ):
            time.sleep(0.1)
        ranks = [int(p) for p in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
        os.kill(ranks[-1], signal.SIGKILL)
        output, _ = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode != 0
    said = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "another process died" in said[0]
    assert "[rank" not in output  # no stack trace
    saved = checkpoint.find(tmp_path).plain["step"]
    alone, settings = trainer(tmp_path, *OPTIONS, f"trainer.steps={saved + 1}")
    resume(alone, settings)
    assert alone.run()
    assert alone.step == saved + 1


@pytest.mark.parametrize("num", [1, 2])
def test_a_refused_second_process_changes_no_byte_of_the_run(tmp_path: Path, num: int) -> None:
    first, _ = trainer(tmp_path, *OPTIONS, "trainer.steps=1", "trainer.preview_every=1")
    assert first.run()

    def state() -> dict[str, tuple[int, bytes]]:
        found = [tmp_path, *sorted(tmp_path.rglob("*"))]
        return {str(f): (f.stat().st_mtime_ns, f.read_bytes() if f.is_file() else b"") for f in found}

    with checkpoint.exclusive_lock(tmp_path):
        before = state()
        words = (*OPTIONS, "trainer.steps=9", "sampling.guidance=9", "trainer.batch_size=4",
                 f"hydra.run.dir={tmp_path}")  # fmt: skip
        if num == 1:
            alone = warm.command("ditmoe.train", *words, cwd=ROOT)
            code, output = alone.returncode, alone.stdout + alone.stderr
        else:
            second = torchrun(num, "ditmoe.train", *words)
            output, code = second.communicate(timeout=120)[0], second.returncode
    assert code != 0
    said = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, output
    assert "another process is training" in said[0]
    assert "[rank" not in output  # no stack trace
    assert state() == before
