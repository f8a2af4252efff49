"""Masked training against training on occupied patches and on all patches.

    python -m benchmarks.quality.masking [--seconds 120] [--only all]

The point cloud model (nano) on the built-in shapes at resolution 32, patch 4, extent 4. Variants differ in the tokens
that the blocks see in training:

- all, occupied: every patch of the grid, or those that points lie in or are interpolated from (also when sampling).
- fastdit3d: 5 % of the patches that hold points and 1 % of the others, then a decoder of two windowed blocks.
- random 95, random 99: 5 % or 1 % of all patches, the same decoder.
- milder: half of the patches that hold points, 10 % of the others.
- decoder alone: a mask that drops nothing, to separate the cost and effect of the decoder.

First, a training step of each is timed, interleaved in one process (processor seconds, one thread; medians of ratios),
and its memory is measured as in `benchmarks.speed.packing`. Then each variant trains from the same seed for --seconds
of processor time, while its learning rate decays to zero. Held-out loss: averaged weights, no token dropped, val and
test, fixed noise at 4 times. Collapse would show there, and in 1-NNA and coverage by Chamfer distance: as many shapes
as val and test have, of the same classes, 20 steps, no guidance; mean and range of `--draws` draws. Each finished run
is a line of runs.jsonl in --out, so the same command resumes; at the end it prints the table. `--untimed` skips the
measurement of steps.
"""

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks import options_of
from benchmarks.speed.packing import memory
from benchmarks.speed.timing import Seconds, interleaved, keep_memory, ratio
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.diffusion import Sampling
from ditmoe.inference import draw
from ditmoe.modality import Samples
from ditmoe.train import make_trainer
from ditmoe.training import Trainer

TASK = [
    "modality=pointcloud", "experiment=fastdit3d", "trainer.precision=fp32", "trainer.warmup=20",
    "trainer.decay=constant", "trainer.ema_decay=0.995", "trainer.preview_every=0", "trainer.save_every=0",
    "trainer.log_every=0", "trainer.steps=100000", "modality.evaluation.emd=null",
]  # fmt: skip
VARIANTS = {
    "all": ["model=nano"],
    "occupied": ["model=nano", "modality.tokens.kept=occupied"],
    "fastdit3d": [],
    "random 95": ["model.mask_ratio=0.95"],
    "random 99": ["model.mask_ratio=0.99"],
    "milder": ["model.mask_ratio=[0.5,0.9]"],
    "decoder alone": ["model.mask_ratio=0"],
}


def make(name: str) -> Trainer:
    """A trainer of one variant."""
    config = composed("train", [*TASK, *VARIANTS[name]])
    with TemporaryDirectory() as folder:
        return make_trainer(config, build.make_modality(config), Path(folder))  # type: ignore[arg-type]


def step(trainer: Trainer) -> float:
    """One training step; its loss."""
    numbers = trainer._train_step()
    trainer.step += 1
    assert numbers is not None
    return float(numbers["losses"]["loss"])


def held_out(trainer: Trainer) -> Samples:
    """Val and test together."""
    parts = [trainer.modality.reference(split) for split in ("val", "test")]
    return Samples(np.concatenate([p.data for p in parts]), np.concatenate([p.labels for p in parts]))


@torch.no_grad()
def held_out_loss(trainer: Trainer, samples: Samples) -> float:
    """Mean squared error of the averaged weights, no token dropped."""
    data_facts = trainer.modality.data_facts()
    x = (torch.from_numpy(samples.data) - torch.tensor(data_facts["mean"])).float() / data_facts["scale"]
    y, generator, losses = torch.from_numpy(samples.labels), torch.Generator().manual_seed(0), []
    for t in torch.linspace(50, 950, 4):
        noise, times = torch.randn(x.shape, generator=generator), t.expand(len(x))
        corrupted, target = trainer.process.corrupt(x, noise, times), trainer.process.target(x, noise, times)
        parts = zip(corrupted.split(8), times.split(8), y.split(8), strict=True)
        output = torch.cat([trainer.ema.model(*part)[0] for part in parts])
        losses.append((output - target).square().mean().item())
    return statistics.mean(losses)


def train(name: str, seconds: float, draws: int, out: Path) -> dict[str, Any]:
    """Train for a time, then measure; the averaged weights and a sheet of the first draw are left in `out`."""
    trainer, losses, used = make(name), [], 0.0
    rates = trainer.base_rates
    while used < seconds:
        start = time.process_time()
        trainer.base_rates = [rate * (1 - used / seconds) for rate in rates]
        losses.append(step(trainer))
        used += time.process_time() - start
    result = {
        "name": name,
        "seconds": seconds,
        "steps": trainer.step,
        "training loss": statistics.mean(losses[-100:]),
    }
    model, modality, reference = trainer.ema.model, trainer.modality, held_out(trainer)
    file = out / name.replace(" ", "-")
    torch.save(model.state_dict(), file.with_suffix(".pt"))
    result["loss"] = held_out_loss(trainer, reference)
    asked = model.conditioning.read(torch.from_numpy(reference.labels))
    for seed in range(draws):
        scheduler = build.make(trainer.state.carried["config"]["scheduler"])
        x = draw(model, modality, trainer.process, scheduler, Sampling(20), asked, seed=seed, batch_size=8)
        drawn = modality.samples(x, asked)
        if not seed:
            modality.save_picture(drawn, file.with_suffix(".png"))
        values = modality.evaluate(drawn, reference).values
        for metric in ("1-nna/cd", "cov/cd"):
            result.setdefault(metric, []).append(values[metric])
    return result


def peak(name: str) -> float:
    """MiB that a training step adds to the memory of a fresh process."""
    words = [sys.executable, "-m", "benchmarks.quality.masking", "--peak", name]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def measure_peak(name: str) -> None:
    """What `peak` runs."""
    torch.set_num_threads(1)
    trainer = make(name)
    step(trainer)  # allocates the optimiser's moments
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = memory()
    step(trainer)
    print(memory() - before)


def table(results: list[dict[str, Any]], seconds: Seconds, peaks: dict[str, float]) -> str:
    """All as Markdown."""
    lines = [
        "| tokens in training | a step is faster | memory of a step | steps in the time | training loss | "
        "held-out loss | 1-NNA-CD | COV-CD |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys([*seconds, *(r["name"] for r in results)]):
        cells = [name, "", "", "", "", "", "", ""]
        if name in seconds:
            each = [a / b for a, b in zip(seconds["all"], seconds[name], strict=True)]
            cells[1] = f"{ratio(seconds, 'all', name):.1f} x ({min(each):.1f} to {max(each):.1f})"
            cells[2] = f"{peaks[name]:.0f} MiB"
        for r in results:
            if r["name"] == name:
                cells[3:6] = [str(r["steps"]), f"{r['training loss']:.3f}", f"{r['loss']:.3f}"]
                cells[6:] = [
                    f"{statistics.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})"
                    for v in (r["1-nna/cd"], r["cov/cd"])
                ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        measure_peak(sys.argv[2])
        return
    parser = options_of(__doc__)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--untimed", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/masking"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    seconds, peaks = {}, {}
    if not options.untimed:
        trainers = {name: make(name) for name in dict.fromkeys(["all", *options.only])}
        one = {name: partial(step, own) for name, own in trainers.items()}
        seconds = interleaved(one, options.rounds, torch.device("cpu"))
        peaks = {name: peak(name) for name in seconds}
        del trainers, one
    file = options.out / "runs.jsonl"
    for name in options.only:
        results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        if not any((r["name"], r["seconds"]) == (name, options.seconds) for r in results):
            result = train(name, options.seconds, options.draws, options.out)
            with file.open("a") as out:
                print(json.dumps(result), file=out)
            print(json.dumps(result), flush=True)
    results = [json.loads(line) for line in file.read_text().splitlines()]
    print(table([r for r in results if r["seconds"] == options.seconds], seconds, peaks))


if __name__ == "__main__":
    main()
