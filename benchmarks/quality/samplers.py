"""Error of every scheduler by its number of steps: python -m benchmarks.quality.samplers

The data are Gaussian, N(MEAN, STD^2) in coordinates of different widths. The optimal network is known in closed form,
so what is left is the scheduler's own error, in standard deviations of the data, root mean square over the coordinates:

- without fresh noise, of each sample against the exact solution of the probability-flow equation (arXiv 2011.13456)
  from the same starting noise;
- with fresh noise ("W2"), the Wasserstein-2 distance between the Gaussian of the samples' moments and the true one;
  below about sqrt(1.5 / SAMPLES) it is chance.

All seeds are fixed, so the tables are reproducible; half a minute on one core. With a checkpoint, the network is a
trained one with its own guidance. The error is then that of schedulers without fresh noise, against 200 steps of Heun,
in units of the deviation of its samples:

    python -m benchmarks.quality.samplers --checkpoint runs/image/default [--samples 8] [--steps 10 25 50]

With a split of the data as well, the samples of each scheduler, from the same starting noise, are measured against it
by the modality's own metrics. Choose a default on val; test then shows what it reaches. Each cell is kept in --out, so
the same command resumes.

    python -m benchmarks.quality.samplers --checkpoint starter/image --split val [--out runs/samplers/image]
"""

import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from benchmarks import options_of
from ditmoe.checkpoint import replacing
from ditmoe.conditioning import Condition
from ditmoe.config import build, cli
from ditmoe.config.restore import restore
from ditmoe.diffusion import (
    DDPM,
    HORIZON,
    FlowMatching,
    Process,
    Sampling,
    denoise,
    draw_noise,
    make_scheduler,
)
from ditmoe.inference import evaluate_checkpoint

MEAN, STD = torch.tensor([0.7, -1.0, 0.3, 0.0, -0.5]), torch.tensor([0.2, 0.4, 0.7, 1.0, 1.5])
STEPS = (5, 10, 20, 50, 100)
SAMPLES = 100_000
SHOWN = ("fd/pixels", "1-nna/cd", "1-nna/emd", "mmd/cd", "roughness", "law/two", "classes/agreement")
TABLES = {
    "Flow matching (residual; the velocity gives the same)": FlowMatching("residual"),
    "DDPM, epsilon, linear": DDPM("epsilon"),
    "DDPM, v, linear": DDPM("v"),
    "DDPM, v, cosine": DDPM("v", "cosine"),
}


class Gaussian(nn.Module):
    """The best possible network for N(MEAN, STD^2): the target is linear in data and noise, so that its mean given
    x_t = a x0 + b e is the target of their means."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def forward(self, x: Tensor, t: Tensor, y: Condition) -> tuple[Tensor, list]:
        a, b = mix(self.process, t)
        away = (x - a * MEAN) / (a**2 * STD**2 + b**2)
        return self.process.target(MEAN + a * STD**2 * away, b * away, t), []


def mix(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """a(t) and b(t), one row per sample."""
    ones = torch.ones(len(t), 1)
    return process.corrupt(ones, 0 * ones, t), process.corrupt(0 * ones, ones, t)


def solution(process: Process, noise: Tensor) -> Tensor:
    """Where the probability-flow equation leads: the number of deviations from the mean stays what it was."""
    a, b = mix(process, torch.tensor([float(HORIZON if isinstance(process, FlowMatching) else HORIZON - 1)]))
    return MEAN + STD * (noise - a * MEAN) / (a**2 * STD**2 + b**2).sqrt()


def names() -> list[str]:
    """Of the schedulers that have a YAML."""
    return sorted(path.stem for path in (cli.config_folder() / "scheduler").glob("*.yaml"))


def scheduler_named(name: str) -> Callable[..., Any]:
    """The scheduler of a YAML, still to be given what it must know of the process."""
    config = OmegaConf.load(cli.config_folder() / "scheduler" / f"{name}.yaml")
    return build.make(OmegaConf.to_container(config))  # type: ignore[arg-type]


def draw(process: Process, name: str, steps: int, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Starting noise, which does not depend on the seed, and what comes of it."""
    noise = torch.randn(samples, len(MEAN), generator=torch.Generator().manual_seed(0))
    x = denoise(
        Gaussian(process),
        process,
        make_scheduler(scheduler_named(name), process),
        noise,
        Condition({}, torch.ones(samples, dtype=torch.bool)),
        steps=steps,
        generators=[torch.Generator().manual_seed(seed + 1)],
    )
    return noise, x


def adds_noise(process: Process, name: str) -> bool:
    """Whether samples depend on more than the noise that they start from."""
    return not torch.equal(draw(process, name, 5, 2)[1], draw(process, name, 5, 2, seed=1)[1])


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def sample_error(process: Process, name: str, steps: int, samples: int = 1000) -> float:
    """Root mean square distance to the exact solution, in deviations of the data."""
    noise, x = draw(process, name, steps, samples)
    return rms((x - solution(process, noise)) / STD)


def moment_error(process: Process, name: str, steps: int, samples: int = SAMPLES) -> float:
    """Wasserstein-2 distance of the Gaussians, in deviations of the data: W^2 = (m - MEAN)^2 + (s - STD)^2."""
    _, x = draw(process, name, steps, samples)
    return rms(torch.stack([x.mean(0) - MEAN, x.std(0) - STD]) / STD) * 2**0.5


def row(process: Process, name: str) -> str:
    """One scheduler's line of a table."""
    noisy = adds_noise(process, name)
    errors = [(moment_error if noisy else sample_error)(process, name, steps) for steps in STEPS]
    return f"| {name} | {'W2' if noisy else 'sample'} | " + " | ".join(f"{e:.4f}" for e in errors) + " |"


def of_checkpoint(path: Path, samples: int, steps: Sequence[int]) -> None:
    """Print the table of a trained model, each scheduler at as many passes of the network."""
    restored = restore(path)
    process, sampling = restored.process, Sampling.of(restored.config)
    asked = restored.model.conditioning.ask(samples, restored.modality.classes)
    noise = draw_noise(range(samples), restored.modality.sample_shape, 0)

    def drawn(name: str, num: int) -> Tensor:
        scheduler = make_scheduler(scheduler_named(name), process)
        how = {"guidance": sampling.guidance, "interval": sampling.interval}
        return denoise(restored.model, process, scheduler, noise, asked, steps=num, **how)

    exact = drawn("flow_heun", 200)
    print(
        f"| scheduler | {' | '.join(f'{n} passes' for n in steps)} |\n|---|" + "--:|" * len(steps), flush=True
    )
    for name in ("flow_euler", "flow_heun", "dpmpp", "unipc"):
        halves = name == "flow_heun"  # 2 n - 1 passes in n steps
        errors = [rms((drawn(name, (n + 1) // 2 if halves else n) - exact) / exact.std()) for n in steps]
        print(f"| {name} | " + " | ".join(f"{e:.4f}" for e in errors) + " |", flush=True)


def measured(path: str, split: str, folder: Path, **words: Any) -> dict[str, Any]:
    """The metrics of what these words of `evaluate_checkpoint` draw against a split; from disk where they are known."""
    file = folder / "metrics.json"
    if not file.exists():
        with TemporaryDirectory() as temporary, redirect_stdout(None):
            evaluate_checkpoint(path, split, out=temporary, trust=True, **words)
            found = (Path(temporary) / "metrics.json").read_bytes()
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            stream.write(found)
    return json.loads(file.read_text())


def shown(found: dict[str, Any]) -> dict[str, str]:
    """The metrics that a table shows, with their intervals."""
    cells = {}
    for metric in (name for name in SHOWN if name in found):
        low, high = found["interval"].get(metric, (None, None))
        cells[metric] = f"{found[metric]:.3f}" + ("" if low is None else f" ({low:.3f} .. {high:.3f})")
    return cells


def qualities(path: str, split: str, steps: Sequence[int], out: Path) -> list[str]:
    """Lines of the table of a trained model's samples against a split."""
    process, lines = restore(path, trusted=True).process, []
    for name in names():
        if name == "flow_map":  # Euler's steps, for distilled models only
            continue
        try:
            make_scheduler(scheduler_named(name), process)
        except ValueError:
            continue
        config = OmegaConf.to_container(OmegaConf.load(cli.config_folder() / "scheduler" / f"{name}.yaml"))
        for num in steps:
            calls = (num + 1) // 2 if name == "flow_heun" else num
            cells = shown(measured(path, split, out / f"{name}-{num}", scheduler=config, steps=calls))
            if not lines:
                lines = [f"| scheduler | passes | {' | '.join(cells)} |", "|---|--:|" + "---|" * len(cells)]
            lines.append(f"| {name} | {num} | {' | '.join(cells.values())} |")
    return lines


def main() -> None:
    """Print a table for each process."""
    parser = options_of(__doc__)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50])
    parser.add_argument(
        "--split", choices=["val", "test"], help="measure samples of the checkpoint against it"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/samplers"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.checkpoint and options.split:
        out = options.out / options.split
        return print("\n".join(qualities(str(options.checkpoint), options.split, options.steps, out)))
    if options.checkpoint:
        return of_checkpoint(options.checkpoint, options.samples, options.steps)
    for title, process in TABLES.items():
        print(f"**{title}**\n\n| scheduler | error | " + " | ".join(f"{s} steps" for s in STEPS) + " |")
        print("|---|---|" + "--:|" * len(STEPS))
        for name in names():
            try:
                make_scheduler(scheduler_named(name), process)
            except ValueError:
                continue
            print(row(process, name))
        print()
    print("flow_heun asks the network 2 n - 1 times in n steps, the others n times.")


if __name__ == "__main__":
    main()
