"""Step time and share of communication at 1, 2 and 4 processes.

    python -m benchmarks.speed.scaling [overrides of train.yaml].

All processes are on this machine. With fewer cores than processes they share cores, so the times show no speedup of
separate devices, but the overhead of the mesh on the same work. That work, a plain model on each process's part of the
batch, is timed in the same processes, interleaved.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.cost import Measured
from ditmoe.distributed import ALONE, launch
from ditmoe.parallel import Mesh
from ditmoe.train import make_modality
from ditmoe.training import Trainer

MESHES = {
    1: [(1, 1, 1)],
    2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)],
    4: [(4, 1, 1), (1, 4, 1), (1, 1, 4), (1, 2, 2)],
}
DEFAULT = ["modality=image", "model=nano", "trainer.batch_size=32", "trainer.precision=fp32"]
ROUNDS = 5


def trainer(config: dict[str, Any], folder: Path, mesh: Mesh) -> Trainer:
    """A trainer on a mesh, or one for this process's samples alone where the mesh is of one process."""
    modality = make_modality(config, folder)
    modality.tokens(config["model"]["hidden_size"])
    share = launch.world() // mesh.world
    config = config | {
        "trainer": config["trainer"] | {"batch_size": config["trainer"]["batch_size"] // share}
    }
    torch.manual_seed(0)
    with torch.device("meta" if mesh.rank else "cpu"):
        model = build.make_model(config, modality)
    process = build.make(config["process"])
    return Trainer(
        model, process, build.make_objective(config, process), modality, options=build.make(config["trainer"]),
        optimizer=lambda parameters: build.make_optimizer(config, parameters), folder=folder, carried={},
        preview=lambda *_: None, seed=0, mesh=mesh,
    )  # fmt: skip


def seconds(run: Trainer) -> float:
    """One step on all ranks, from the moment that all are ready until the last is done."""
    if dist.is_initialized():
        dist.barrier()
    start = time.perf_counter()
    run._train_step()
    run.step += 1
    if dist.is_initialized():
        dist.barrier()
    return time.perf_counter() - start


def measure(config: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Rows of this number of processes."""
    rows = []
    alone = trainer(config, folder, Mesh(1, 1, 1, ranks=ALONE))
    for sizes in MESHES[launch.world()]:
        together = trainer(config, folder, Mesh(*sizes))
        times: dict[str, list[float]] = {"mesh": [], "alone": []}
        for turn in range(ROUNDS + 1):
            for name, run in (("mesh", together), ("alone", alone))[:: 1 if turn % 2 else -1]:
                taken = seconds(run)
                if turn:
                    times[name].append(taken)
        with Measured() as sent:
            seconds(together)
        share = [1 - a / m for a, m in zip(times["alone"], times["mesh"], strict=True)]
        rows.append(
            {"processes": launch.world(), "mesh": sizes, "step": statistics.median(times["mesh"]),
             "alone": statistics.median(times["alone"]), "share": statistics.median(share),
             "low": min(share), "high": max(share), "sent": sum(sent.sent.values())}
        )  # fmt: skip
    return rows


def worker(words: list[str], out: Path) -> None:
    """What torchrun starts."""
    config: Any = composed("train", [*DEFAULT, *words])
    with launch.processes(), TemporaryDirectory() as folder:
        rows = measure(config, Path(folder))
        if launch.rank() == 0:
            out.write_text(json.dumps(rows))


def main(words: list[str]) -> None:
    """Print a line for each mesh."""
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.0f} before this; {' '.join([*DEFAULT, *words])}"
    )
    print(f"median of {ROUNDS} steps, in turns with the same work alone")
    print(
        "processes  copies x parts x experts   step ms   the same work alone ms    share of communication   sent MB"
    )
    for num in MESHES:
        with TemporaryDirectory() as folder:
            out = Path(folder) / "rows.json"
            command = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc_per_node={num}",
            ]
            subprocess.run(
                [*command, "-m", "benchmarks.speed.scaling", f"--worker={out}", *words],
                check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            for row in json.loads(out.read_text()):
                sizes = " x ".join(map(str, row["mesh"]))
                print(
                    f"{row['processes']:>9}  {sizes:>24}{1e3 * row['step']:>10.0f}{1e3 * row['alone']:>25.0f}"
                    f"{row['share']:>12.2f} ({row['low']:.2f} .. {row['high']:.2f}){row['sent'] / 1e6:>11.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("--worker="):
        worker(sys.argv[2:], Path(sys.argv[1].partition("=")[2]))
    else:
        main(sys.argv[1:])
