"""Our default point clouds against DiT-3D's: same data, same processor time, several seeds, exact metrics.

    python -m benchmarks.quality.beside_dit3d [--seconds 600] [--seeds 0 1 2] [--out runs/beside_dit3d] [--words ...]

Each model first trains twice for a few steps, to measure the processor time of a step. It then trains for as many steps
as fit into `--seconds` of that, so its learning rate schedule is complete, and draws as many shapes as the test split
has, in 50 steps. Rows:

- ours, as `./run train` has it
- DiT-3D (arXiv 2307.01831) at size S, with the published learning rate
- DiT-3D's tokens, dense layers, process and sampler at our size, with our optimiser, batches, augmentation and
  guidance: separates the method from the size

Writes table.md and picture.png. Finished parts are skipped, so the same command resumes. One thread, unless
OMP_NUM_THREADS is set. `--words` are further options of `ditmoe.train` for all rows, such as
`modality.data.root=ShapeNetCore.v2.PC15k`.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks import options_of
from ditmoe.checkpoint import replacing
from ditmoe.config.restore import restore
from ditmoe.inference import draw_from, evaluate_checkpoint

DRAWN = ["scheduler=dpmpp", "sampling.steps=50"]
OUR_SIZE = [
    "model=nano",
    "optimizer.lr=2.0e-3",
    "optimizer.betas=[0.9,0.99]",
    "optimizer.weight_decay=0.01",
    "trainer.batch_size=8",
    "trainer.warmup=200",
    "trainer.decay=linear",
    "trainer.clip=1.0",
    "trainer.ema_decay=0.998",
    "modality.data.mirror=true",
    "modality.data.scale_jitter=0.2",
    "modality.data.balance=0.5",
    "sampling.guidance=2.5",
]
MODELS = {
    "ditmoe": [],
    "DiT-3D, S": ["experiment=dit3d", *DRAWN],
    "DiT-3D, our size": ["experiment=dit3d", *DRAWN, *OUR_SIZE],
}
"""Words of `ditmoe.train` by row."""
METRICS = ("1-nna/emd", "1-nna/cd", "cov/emd", "roughness", "classes/agreement")
SHORT, LONG = 10, 40
"""Steps of the two trainings that tell what a step takes."""
PICTURED = 9
"""Shapes of a row of the picture: one of each built-in class."""


def train(run: Path, model: str, seed: int, steps: int, words: Sequence[str]) -> float:
    """Train a row, or go on with it; seconds of the processor that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "ditmoe.train", "modality=pointcloud", *MODELS[model], *words]
    command += [f"hydra.run.dir={run}", f"seed={seed}", f"trainer.steps={steps}", "finish.num=0"]
    command += ["finish.evaluate=false", "trainer.preview_every=0", "trainer.save_every=200"]
    subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def remembered(file: Path, make: Any) -> dict[str, Any]:
    """What was written here, or is made and written now."""
    if not file.exists():
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            stream.write(json.dumps(found).encode())
    return json.loads(file.read_text())


def seconds_of_step(out: Path, model: str, words: Sequence[str]) -> float:
    """Processor time of a step, without that of the start."""

    def measure() -> dict[str, float]:
        taken = {steps: train(out / f"moment-{steps}", model, 0, steps, words) for steps in (SHORT, LONG)}
        return {"seconds": (taken[LONG] - taken[SHORT]) / (LONG - SHORT)}

    return remembered(out / "step.json", measure)["seconds"]


def drawn(run: Path, seed: int, file: Path) -> Image.Image:
    """Shapes of the first classes that a run draws, in a row."""
    if not file.exists():
        restored = restore(run, trusted=True)
        asked = restored.model.conditioning.ask(PICTURED, restored.modality.classes)
        restored.modality.save_picture(draw_from(restored, asked, seed=seed), file)  # type: ignore[attr-defined]
    return Image.open(file).convert("RGB")


def picture(rows: dict[str, Image.Image]) -> Image.Image:
    """The rows, one below the other, with their names."""
    width, line = max(image.width for image in rows.values()), 22
    page = Image.new("RGB", (width, sum(image.height + line for image in rows.values())), "white")
    top = 0
    for name, image in rows.items():
        ImageDraw.Draw(page).text((6, top + 5), name, fill="black")
        page.paste(image, (0, top + line))
        top += image.height + line
    return page


def table(found: dict[str, list[dict[str, Any]]], seconds: float) -> str:
    """Mean over the seeds, and the least and largest of them."""
    lines = [
        f"{seconds:.0f} s of one core each; mean over seeds (least .. largest).\n",
        f"| | seeds | steps | {' | '.join(METRICS)} |",
        f"|---|--:|--:|{'---|' * len(METRICS)}",
    ]
    for model, runs in found.items():
        cells = []
        for metric in METRICS:
            values = [run[metric] for run in runs]
            cells.append(f"{np.mean(values):.2f} ({min(values):.2f} .. {max(values):.2f})")
        lines.append(f"| {model} | {len(runs)} | {runs[0]['steps']:,} | {' | '.join(cells)} |")
    for name in ("oracle", "held-out"):
        first = next(iter(found.values()))[0].get(name, {})
        if any(metric in first for metric in METRICS):
            cells = [f"{first[metric]:.2f}" if metric in first else "" for metric in METRICS]
            lines.append(f"| real shapes ({name}) | | | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--only", nargs="*", default=list(MODELS), help="rows that are trained; others as they are"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/beside_dit3d"))
    parser.add_argument("--words", nargs="*", default=[], help="of ditmoe.train, for all of them")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {model: [] for model in MODELS}
    for seed in options.seeds:
        for number, model in enumerate(MODELS):
            place = options.out / str(number)
            if model not in options.only and not (place / f"seed-{seed}" / "result.json").exists():
                continue
            steps = max(SHORT, round(options.seconds / seconds_of_step(place, model, options.words)))
            run = place / f"seed-{seed}"

            def measure(run: Path = run, model: str = model, seed: int = seed, steps: int = steps) -> Any:
                taken = train(run, model, seed, steps, options.words)
                evaluate_checkpoint(run, seed=seed, out=run / "measured", trust=True)
                found = json.loads((run / "measured" / "metrics.json").read_text())
                return {**found, "steps": steps, "processor": taken}

            found[model].append(remembered(run / "result.json", measure))
            done = {name: runs for name, runs in found.items() if runs}
            with replacing(options.out / "table.md") as stream:
                stream.write(table(done, options.seconds).encode())
    first = {
        model: drawn(options.out / str(number) / f"seed-{options.seeds[0]}", 0, options.out / f"{number}.png")
        for number, model in enumerate(MODELS)
        if found[model]
    }
    picture(first).save(options.out / "picture.png")
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    main()
