"""Where the time of a training step goes: python -m benchmarks.speed.train_step [overrides of configs/train.yaml].

Medians over the steps of one run. Each part is timed in every step, so that all parts see the same machine.
"""

import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.train import make_trainer


def main(overrides: list[str], steps: int = 40) -> None:
    """Print the parts of a step, and what share of it they take."""
    config = composed("train", overrides)
    modality = build.make_modality(config)
    with TemporaryDirectory() as folder:
        trainer = make_trainer(config, modality, Path(folder))
    seconds = defaultdict(list)

    def timed(name: str, work) -> None:
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name].append(time.perf_counter() - start)

    size = trainer.options.batch_size
    x = modality.batch(size, 0, 0)[0].to(trainer.device)
    tokens = trainer.model.tokens
    for step in range(steps):
        timed("whole step", trainer._train_step)
        timed("data (draw, augment, normalise)", lambda step=step: modality.batch(size, 1, step))
        timed("patchify (voxels)", lambda: tokens.patchify(x, tokens.layout(x)))
        trainer.step += 1
    whole = statistics.median(seconds["whole step"])
    print(f"{trainer.device}, {torch.get_num_threads()} threads, batch {size}, median of {steps} steps")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:36s}{1e3 * median:9.2f} ms{100 * median / whole:8.1f} %")


if __name__ == "__main__":
    main(sys.argv[1:])
