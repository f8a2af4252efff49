"""Accuracy cost of first-block caching, against fewer steps of equal work: python -m benchmarks.quality.caching

On trained models, with their own guidance and a scheduler without fresh noise. The error is the root mean square
distance to the solution (200 steps of Heun) from the same starting noise, in standard deviations of the samples. The
work is the number of full forward passes that the executed blocks add up to. Each cache threshold is followed by the
schedulers without a cache at as many passes, rounded to whole steps, so each group of rows costs the same.

    python -m benchmarks.quality.caching [--checkpoint starter/image starter/pointcloud] [--samples 8]

Four minutes on one core.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import options_of
from benchmarks.quality.samplers import rms, scheduler_named
from ditmoe.config.restore import Restored, restore
from ditmoe.diffusion import Sampling, denoise, draw_noise, make_scheduler

THRESHOLDS = (0.05, 0.1, 0.2, 0.4)
STEPS = 50


class Drawing:
    """Draws the same samples of a trained model in several ways, and counts the blocks that run."""

    def __init__(self, restored: Restored, samples: int) -> None:
        self.restored, self.sampling = restored, Sampling.of(restored.config)
        self.asked = restored.model.conditioning.ask(samples, restored.modality.classes)
        self.noise = draw_noise(range(samples), restored.modality.sample_shape, 0)
        self.blocks = 0
        for block in restored.model.blocks:
            block.register_forward_pre_hook(self._count)

    def _count(self, block: Any, args: tuple) -> None:
        self.blocks += len(args[0])

    def __call__(self, scheduler: str, steps: int, threshold: float = 0.0) -> tuple[Tensor, float]:
        """The samples, and the number of passes that the blocks add up to."""
        self.blocks = 0
        x = denoise(
            self.restored.model,
            self.restored.process,
            make_scheduler(scheduler_named(scheduler), self.restored.process),
            self.noise,
            self.asked,
            steps=steps,
            guidance=self.sampling.guidance,
            interval=self.sampling.interval,
            first_block_cache=threshold,
        )
        views = 1 if self.sampling.guidance == 1 else 2
        return x, self.blocks / (len(self.restored.model.blocks) * views * len(x))


def table(name: str, drawing: Drawing) -> None:
    """Print the lines of one model."""
    exact, _ = drawing("flow_heun", 200)

    def line(what: str, draw: Callable[[], tuple[Tensor, float]]) -> float:
        x, passes = draw()
        error = rms((x - exact) / exact.std())
        print(f"| {name} | {what} | {passes:.1f} | {error:.4f} |", flush=True)
        return passes

    line(f"flow_euler, {STEPS} steps", lambda: drawing("flow_euler", STEPS))
    for threshold in THRESHOLDS:
        passes = line(
            f"flow_euler, {STEPS} steps, first_block_cache={threshold}",
            lambda threshold=threshold: drawing("flow_euler", STEPS, threshold),  # type: ignore[misc]
        )
        for scheduler in ("flow_euler", "unipc"):
            steps = max(1, round(passes))
            line(
                f"{scheduler}, {steps} steps",
                lambda scheduler=scheduler, steps=steps: drawing(scheduler, steps),  # type: ignore[misc]
            )


def main() -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, nargs="+", default=[Path("starter/image"), Path("starter/pointcloud")]
    )
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | how | passes | error |\n|---|---|--:|--:|")
    for path in options.checkpoint:
        table(str(path), Drawing(restore(path), options.samples))


if __name__ == "__main__":
    main()
