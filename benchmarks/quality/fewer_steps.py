"""How good are few steps? A trained run, and one distilled from it, sampled in 50, 8, 4, 2 and 1 steps.

    python -m benchmarks.quality.fewer_steps [--modality image ...] [--teacher image=runs/image/default ...]
        [--out runs/fewer_steps] [--words trainer.steps=3000 ...] [--seed 0]

For each modality it trains a teacher (the default run, unless one is named), distils it (--words are options of
`ditmoe.distill`), evaluates both on the test split, and writes table.md, and picture.png of the first samples. Finished
parts are skipped, so the same command resumes. Columns: the modality's first metric with its 95 % interval; class
agreement (for clips: the accuracy of a frame classifier, trained on real ones, over 64); and seconds per sample in a
batch of 64, more on a busy machine. The teacher takes the steps of its own sampler, the distilled run flow-map steps.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from benchmarks import options_of
from benchmarks.quality.beside_dit3d import picture
from benchmarks.quality.given import identity, learn_digits
from ditmoe.checkpoint import replacing
from ditmoe.config.restore import restore
from ditmoe.inference import draw_from, evaluate_checkpoint

STEPS = (50, 8, 4, 2, 1)
METRICS = ("fd/pixels", "1-nna/cd")
CLASSES = "classes/agreement"
TIMED = 64
PICTURED = {"trained": (50, 4, 1), "distilled": (4, 1)}
HEAD = ["| | model | steps | metric | | 95 % | class | s / sample |", "|---|---|--:|---|--:|---|--:|--:|"]


def command(module: str, *words: str) -> None:
    """Run one of the commands; a run that is finished returns at once, apart from what it draws at the end."""
    subprocess.run([sys.executable, "-m", f"ditmoe.{module}", *words], check=True)


def runs_of(modality: str, out: Path, teacher: Path | None, words: Sequence[str]) -> dict[str, Path]:
    """The teacher and what was distilled from it, trained if they are not."""
    quiet = ("finish.num=0", "finish.evaluate=false")
    if teacher is None:
        teacher = out / modality / "teacher"
        if not (teacher / "done").exists():
            command("train", f"modality={modality}", f"hydra.run.dir={teacher}", *quiet)
            (teacher / "done").touch()
    few = out / modality / "few"
    if not (few / "done").exists():
        command("distill", f"checkpoint={teacher}", f"out={few}", "trust=true", *quiet, *words)
        (few / "done").touch()
    return {"trained": teacher, "distilled": few}


def cell(run: Path, steps: int, folder: Path, seed: int) -> dict[str, Any]:
    """What a run drawn in so many steps measures, and its seconds for a sample; from disk where it is known."""
    file = folder / "cell.json"
    if file.exists():
        return json.loads(file.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    evaluate_checkpoint(run, steps=steps, seed=seed, out=folder, trust=True)
    restored = restore(run, trusted=True)
    asked = restored.model.conditioning.ask(TIMED, restored.modality.classes)
    start = time.perf_counter()
    samples = draw_from(restored, asked, steps=steps, seed=seed)
    seconds = (time.perf_counter() - start) / TIMED
    assert samples is not None
    restored.modality.write(samples, folder / "samples")  # type: ignore[attr-defined]
    found = {"seconds": seconds} | json.loads((folder / "metrics.json").read_text())
    if restored.modality.name == "video":
        classifier = learn_digits(restored, samples.data.shape[2:4])
        found[CLASSES] = identity(classifier, samples.data, samples.labels).mean()
    with replacing(file) as stream:
        stream.write(json.dumps(found).encode())
    return found


def row(modality: str, model: str, steps: int, found: dict[str, Any]) -> str:
    """Of the table."""
    metric = next(name for name in (*METRICS, *found) if name in found)
    low, high = found["interval"].get(metric, (float("nan"), float("nan")))
    agreed = f"{found[CLASSES]:.3f}" if CLASSES in found else ""
    return (
        f"| {modality} | {model} | {steps} | {metric} | {found[metric]:.3f} | {low:.3f} .. {high:.3f} | {agreed} | "
        f"{found['seconds']:.3f} |"
    )


def first_samples(runs: dict[str, Path], seed: int, file: Path) -> None:
    """Draw one sample of each of the first classes with both runs, from the same noise."""
    rows = {}
    for model, run in runs.items():
        restored = restore(run, trusted=True)
        asked = restored.model.conditioning.ask(3, restored.modality.classes)
        for steps in PICTURED[model]:
            with TemporaryDirectory() as folder:
                samples = draw_from(restored, asked, steps=steps, seed=seed)
                restored.modality.save_picture(samples, Path(folder) / "row.png")  # type: ignore[attr-defined]
                with Image.open(Path(folder) / "row.png") as image:
                    rows[f"{model}, {steps} step{'s'[: steps > 1]}"] = image.convert("RGB")
    with replacing(file) as stream:
        picture(rows).save(stream, "PNG")


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--modality", nargs="*", default=["image", "pointcloud", "video"])
    parser.add_argument("--teacher", nargs="*", default=[], help="image=runs/image/default ...")
    parser.add_argument("--out", type=Path, default=Path("runs/fewer_steps"))
    parser.add_argument("--words", nargs="*", default=[], help="of ditmoe.distill")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    teachers = {name: Path(path) for name, _, path in (said.partition("=") for said in options.teacher)}
    lines = [*HEAD]
    for modality in options.modality:
        runs = runs_of(modality, options.out, teachers.get(modality), options.words)
        for model, run in runs.items():
            for steps in STEPS if model == "trained" else STEPS[1:]:
                place = options.out / modality / f"{model}-{steps}-seed{options.seed}"
                lines.append(row(modality, model, steps, cell(run, steps, place, options.seed)))
                with replacing(options.out / "table.md") as stream:
                    stream.write(("\n".join(lines) + "\n").encode())
        if not (file := options.out / modality / "picture.png").exists():
            first_samples(runs, options.seed, file)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
