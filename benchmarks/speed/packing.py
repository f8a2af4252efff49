"""Cost of empty space: python -m benchmarks.speed.packing [--grids 16/4 32/4 64/4] [--extent 4] [--once 128/4]

A training step and a sampling step of the default point cloud model (nano, at the given width) on the built-in shapes,
with all patches as tokens against occupied ones only, for grids of resolution/patch that cover `extent` standard
deviations to each side. Processor time, one thread, interleaved in one process. A training step is on a batch at random
times; a sampling step is the mean over five times from noise to data. The memory of a step is the peak of a separate
process, less what it had before the step. `--once` grids take one round and batches of one, since `all` takes minutes
on larger grids.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import options_of
from benchmarks.speed.timing import interleaved, keep_memory, ratio
from ditmoe import DiTMoE
from ditmoe.diffusion import FlowMatching
from ditmoe.moe import TokenChoice
from modalities.pointcloud import Clouds, PointVoxelTokens

TIMES = (50.0, 250.0, 500.0, 750.0, 950.0)


def steps(kept: str, grid: str, extent: float, width: int, batch: int) -> dict[str, Callable[[], object]]:
    """A training step, and one of sampling, of a model of this grid."""
    torch.manual_seed(0)
    resolution, patch = map(int, grid.split("/"))
    tokens = PointVoxelTokens(width, resolution, patch, extent, kept=kept)
    router = partial(TokenChoice, num_experts=8, top_k=2)
    model = DiTMoE(
        tokens, 6, width, 6, width // 32, router, moe_layers=[3, 4, 5], expert_ratio=0.5,
        dense_ratio=3.0, dense_activation="swiglu",
    )  # fmt: skip
    data, process = Clouds(root=None), FlowMatching("residual")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    x0, y = (torch.from_numpy(np.asarray(v)) for v in data.batch(batch, 0, 0))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x0.shape, generator=generator)
    t = 1000 * (torch.arange(batch) + 0.5) / batch
    x_t, target = process.corrupt(x0, noise, t), process.target(x0, noise, t)

    def train() -> None:
        (model(x_t, t, y)[0] - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def sample() -> None:
        for time in TIMES if batch > 1 else (500.0,):
            times = torch.full((batch,), time)
            model(process.corrupt(x0, noise, times), times, y)

    share = sum(tokens.layout(x_t).lengths) / (batch * (resolution // patch) ** 3)
    return {"training": train, "sampling": sample, "share": lambda: share}


def peak(kept: str, grid: str, extent: float, width: int, batch: int) -> float:
    """MiB that a training step adds to the memory of a fresh process."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.speed.packing",
        "--peak",
        kept,
        grid,
        str(extent),
        str(width),
        str(batch),
    ]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def measure_peak(kept: str, grid: str, extent: float, width: int, batch: int) -> None:
    """What `peak` runs."""
    torch.set_num_threads(1)
    train = steps(kept, grid, extent, width, batch)["training"]
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = memory()
    train()
    print(memory() - before)


def memory() -> float:
    """MiB of this process at its peak; on Linux alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def compare(grid: str, extent: float, width: int, batch: int, rounds: int) -> None:
    """One line of the table."""
    made = {kept: steps(kept, grid, extent, width, batch) for kept in ("all", "occupied")}
    cells = [f"{grid:7s}", f"{made['occupied']['share']():6.1%}"]
    for kind in ("training", "sampling"):
        seconds = interleaved({kept: m[kind] for kept, m in made.items()}, rounds, torch.device("cpu"))
        each = [a / b for a, b in zip(seconds["all"], seconds["occupied"], strict=True)]
        steps_taken = len(TIMES) if kind == "sampling" and batch > 1 else 1
        milliseconds = 1e3 * min(seconds["occupied"]) / batch / steps_taken
        cells.append(
            f"{ratio(seconds, 'all', 'occupied'):6.1f} x ({min(each):.1f} .. {max(each):.1f}), {milliseconds:.0f} ms"
        )
    peaks = [peak(kept, grid, extent, width, batch) for kept in ("all", "occupied")]
    cells.append(f"{peaks[0]:.0f} MiB / {peaks[1]:.0f} MiB = {peaks[0] / max(peaks[1], 1):.1f}")
    print("  ".join(cells), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        kept, grid, extent, width, batch = sys.argv[2:]
        measure_peak(kept, grid, float(extent), int(width), int(batch))
        return
    parser = options_of(__doc__)
    parser.add_argument("--grids", nargs="*", default=["16/4", "32/4", "64/4"])
    parser.add_argument("--once", nargs="*", default=[])
    parser.add_argument("--extent", type=float, default=4.0)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    print(
        f"all / occupied: torch {torch.__version__}, one thread, extent {options.extent:g}, width {options.width}, "
        f"batch {options.batch}, 2048 points, medians of {options.rounds} rounds; ms of occupied per sample"
    )
    print(
        "grid     tokens  training step               step of sampling            memory of a training step"
    )
    for grid in options.grids:
        compare(grid, options.extent, options.width, options.batch, options.rounds)
    for grid in options.once:
        compare(grid, options.extent, options.width, 1, 1)


if __name__ == "__main__":
    main()
