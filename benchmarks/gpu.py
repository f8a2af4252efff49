"""Measures ditmoe on a GPU and writes one page, in eight minutes: python -m benchmarks.gpu [--out gpu.md] [--cpu-smoke]

Parts run one after the other, the most important first, each in its own processes, which are killed at the part's time
limit. The page is rewritten after each part, so results survive whatever comes later. `--cpu-smoke` runs the same parts
at tiny size on a CPU, with three times the time limit, to check that they work; its numbers mean nothing.
"""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from benchmarks import options_of
from ditmoe.checkpoint import replacing

TOTAL = 480.0
"""Seconds that all parts have."""
FEWEST = 5.0
"""Seconds that a part needs to begin."""


@dataclass(frozen=True)
class Part:
    """Something to measure: what `python -m` runs, seconds at the most, and what it runs to see that it works."""

    title: str
    command: str
    limit: float
    smoke: str


STEP, CLOUD = "benchmarks.gpu_parts", "ditmoe.train modality=pointcloud name=gpu"
TINY = "--hidden 64 --depth 1 --batch 2 --rounds 1"
PARTS = (
    Part("Tests that need a GPU", "pytest -q -m gpu", 60, "pytest -q tests/nn/test_layout.py -m gpu"),
    Part(
        "The layer with experts, against dense and the loop of public code",
        "benchmarks.speed.moe_layer --hidden 384 1152 --tokens 16384 --experts 8 --dtype bf16",
        30,
        "benchmarks.speed.moe_layer --hidden 64 --tokens 1024 --experts 8 --dtype bf16 --rounds 1",
    ),
    Part(
        "S/2, steps in bfloat16",
        f"{STEP} steps --hidden 384 --depth 12 --batch 64",
        45,
        f"{STEP} steps {TINY}",
    ),
    Part(
        "XL/2, steps in bfloat16",
        f"{STEP} steps --hidden 1152 --depth 28 --batch 16 --rounds 3",
        55,
        f"{STEP} steps {TINY}",
    ),
    Part("Voxels, occupied tokens, packed rows", f"{STEP} tokens", 30, f"{STEP} tokens {TINY}"),
    Part("Waiting for data", f"{STEP} data", 15, f"{STEP} data {TINY}"),
    Part(
        "Sampling, 50 steps with guidance",
        f"{STEP} sampling --hidden 384 --depth 12 --batch 64",
        30,
        f"{STEP} sampling {TINY}",
    ),
    Part(
        "Exact EMD and Chamfer distance (on the host), 1-NNA",
        "benchmarks.speed.cloud_metrics --sets 40 --family varied --workers 4",
        15,
        "benchmarks.speed.cloud_metrics --sets 3 --points 64 --family varied --rows 1",
    ),
    Part("What determinism costs", f"{STEP} determinism", 15, f"{STEP} determinism {TINY}"),
    Part(
        "Four minutes of training clouds at the width of S, and what comes of it",
        f"{CLOUD} model=s trainer.batch_size=32 trainer.steps=2000 finish.num=16 hydra.run.dir=FOLDER",
        240,
        f"{CLOUD} model=debug modality.num_points=64 trainer.steps=2 finish.num=2 finish.evaluate=false "
        "hydra.run.dir=FOLDER",
    ),
)


def run(command: str, limit: float) -> tuple[str, str]:
    """What a command printed, and how it ended; at its limit it and all that it started are killed."""
    with TemporaryDirectory() as compiled:  # separate: a killed part leaves a partial file there
        return _run(command, limit, {**os.environ, "TORCHINDUCTOR_CACHE_DIR": compiled})


def _run(command: str, limit: float, environment: dict[str, str]) -> tuple[str, str]:
    start = time.monotonic()
    words = [sys.executable, "-m", *command.split()]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=environment,
        text=True,
        errors="replace",
    )
    try:
        text, _ = process.communicate(timeout=limit)
        ended = f"{time.monotonic() - start:.0f} s"
        ended += "" if process.returncode == 0 else f", **failed with exit code {process.returncode}**"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        ended = f"**killed at its limit of {limit:.0f} s**; above is what it had printed"
    except BaseException:  # stopped from outside: leave nothing behind
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return text, ended


def machine() -> list[str]:
    """Card, driver and versions."""
    import torch

    lines = [f"- {platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}"]
    if shutil.which("nvidia-smi"):
        words = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total,power.limit",
            "--format=csv,noheader",
        ]
        lines.append(f"- {subprocess.run(words, capture_output=True, text=True, timeout=20).stdout.strip()}")
    else:
        lines.append("- no GPU")
    return lines


def last_lines(text: str, most: int = 60) -> str:
    """The end of what was printed, without what progress bars overwrote."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]
    return "\n".join([line for line in lines if line][-most:]) or "(nothing was printed)"


def main(parts: tuple[Part, ...] = PARTS, total: float = TOTAL) -> None:
    """All parts, and the page."""
    parser = options_of(__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu.md"))
    parser.add_argument("--cpu-smoke", action="store_true", help="at tiny size, anywhere")
    options = parser.parse_args()
    start = time.monotonic()
    smoke = "\nThese are smoke tests on a CPU: **the figures mean nothing.**\n" if options.cpu_smoke else ""
    page = ["# ditmoe on a GPU", smoke, *machine()]
    folder = mkdtemp(prefix="ditmoe-gpu-")  # new: an existing run would be resumed
    for part in parts:
        left = total - (time.monotonic() - start)
        page += ["", f"## {part.title}", ""]
        if left < FEWEST:
            page.append(f"**not run**: {total:.0f} s were over.")
        else:
            command = (part.smoke if options.cpu_smoke else part.command).replace("FOLDER", folder)
            print(f"{part.title} ...", flush=True)
            text, ended = run(command, min(part.limit * (3 if options.cpu_smoke else 1), left))
            page += ["```text", f"$ python -m {command}", last_lines(text), "```", "", ended]
        with replacing(options.out) as stream:
            stream.write(("\n".join(page) + "\n").encode())
    with suppress(OSError):  # kept if it holds the trained run
        os.rmdir(folder)
    print(f"{options.out}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # also ends the running part
    main()
