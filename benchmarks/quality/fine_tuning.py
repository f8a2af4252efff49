"""What fine-tuning published weights on a person's own classes brings: before, whole, by LoRA, and from scratch.

    python -m benchmarks.quality.fine_tuning [--published 1500] [--steps 300] [--seeds 0] [--out runs/fine_tuning]

What would be downloaded is made here, at small size, from the built-in digits 0 to 4: an AutoencoderKL of diffusers,
and a model in DiT-MoE's arrangement (rectified flow; all layers with 8 experts, 2 active), written as `published.pt`
with the published names. A person's own pictures are the digits 5 to 9: `mine/train` has 40 of each class, `mine/test`
40 others. Rows, by the commands of docs/training.md, all with the same pictures, steps and batches:

- before: the converted weights as they are. They draw their own classes.
- whole, LoRA: fine-tuned on `mine/`, at the learning rates named.
- from scratch: the same model without `init=`, at the default learning rate.

Each is measured by what `train` prints at its end: distance and class agreement against `mine/test`, in pixels, with
95 % intervals. "real, through the autoencoder" are training pictures, encoded and decoded.

Writes table.md and picture.png. Finished parts are skipped, so the same command resumes. One thread, unless
OMP_NUM_THREADS is set.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import options_of
from benchmarks.quality.beside_dit3d import picture, remembered
from benchmarks.quality.published_files import autoencoder, write_published
from ditmoe.checkpoint import replacing
from ditmoe.pretrained import words_to_start_from
from modalities.image import evaluate_images
from modalities.shared.digits import NUMERALS, SPLITS, digits

SIZE = 32
PUBLISHED, OWN = range(5), range(5, 10)
TRAIN, TEST = 40, 40
"""A person's pictures of each class."""
SIZES = [
    "model.hidden_size=96",
    "model.depth=3",
    "model.num_heads=3",
    "model.expert_ratio=1.0",
    "model.shared_ratio=1.0",
]
FLOW = ["model.time_scale=0.001", "process=flow_matching", "process.prediction=velocity"]
MODEL = ["model=s", *SIZES, *FLOW]
"""The words that `convert` prints."""
ROWS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "whole": (("init",), (1e-4, 1e-3)),
    "LoRA": (("init", "experiment=lora"), (1e-3, 4e-3, 1e-2)),
    "from scratch": ((), (2e-3,)),
}
"""Words of `ditmoe.train` and learning rates by row."""
COLUMNS = ("fd/pixels", "classes/agreement")


def write_pictures(out: Path) -> None:
    """The digits as PNG files in class folders: `published/` and `mine/`, each with train and test."""
    parts = [digits(split, SIZE) for split in SPLITS]
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    for folder, classes, num, test in (("published", PUBLISHED, 140, 30), ("mine", OWN, TRAIN, TEST)):
        for digit in classes:
            for number, image in enumerate(images[labels == digit][: num + test]):
                split = "train" if number < num else "test"
                file = out / folder / split / NUMERALS[digit] / f"{number:03}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).convert("RGB").save(file)


def pictures_of(folder: Path) -> np.ndarray:
    """(S, H, W, 3): all pictures below a folder."""
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.rglob("*.png"))])


def command(module: str, *words: str) -> float:
    """Run a command; seconds of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    subprocess.run([sys.executable, "-m", f"ditmoe.{module}", *words], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(run: Path, latents: Path, data: Path, vae: Path, steps: int, *words: str) -> dict[str, Any]:
    """Train a run, or go on with it; what it measures at its end."""
    codec = (
        f"modality.size=[{SIZE},{SIZE}]",
        "codec@modality.codec=autoencoder",
        f"modality.codec.path={vae}",
    )
    if not latents.exists():
        command("prepare", "modality=image", *codec, f"source={data}", f"out={latents}")
    folders = (f"modality.data.root={data}", f"modality.latents={latents}")
    shape = (*MODEL, "scheduler=dpmpp")
    loop = (
        f"trainer.steps={steps}",
        "trainer.batch_size=32",
        "trainer.warmup=50",
        "sampling.steps=20",
        "finish.num=25",
    )
    quiet = ("trainer.preview_every=0", "trainer.save_every=200", f"hydra.run.dir={run}")
    seconds = command("train", "modality=image", *codec, *folders, *shape, *loop, *quiet, *words)
    return json.loads((run / "metrics.json").read_text()) | {"seconds": seconds}


def published(out: Path, steps: int) -> dict[str, Any]:
    """Make what would be downloaded: `vae/` and `published.pt`; what the model measures on its own classes."""
    torch.manual_seed(0)
    if not (out / "vae").exists():
        autoencoder(torch.from_numpy(pictures_of(out / "published" / "train")), out / "vae")
    run = out / "origin"
    found = train(run, out / "published-latents", out / "published", out / "vae", steps)
    write_published(run, out / "published.pt")
    return found


def before(out: Path) -> dict[str, Any]:
    """Convert, export and draw; against the person's test pictures."""
    import ditmoe

    command("convert", f"source={out}/published.pt", f"out={out}/converted", "num_heads=3", "time=unscaled")
    assert sorted(words_to_start_from(out / "converted")) == sorted(MODEL)
    command("export", f"checkpoint={out}/converted", f"autoencoder={out}/vae", f"out={out}/pipeline")
    pipe = ditmoe.Pipeline.from_pretrained(str(out / "pipeline"))
    test = pictures_of(out / "mine" / "test")
    asked = [number % len(PUBLISHED) for number in range(len(test))]
    made = pipe(asked, num_inference_steps=20, guidance_scale=1.5).images
    return measured(np.stack([np.asarray(image) for image in made]), test, out / "before.png")


def through_autoencoder(out: Path) -> dict[str, Any]:
    """The person's training pictures, encoded and decoded."""
    from modalities.image import Autoencoder

    codec, real = Autoencoder(out / "vae"), pictures_of(out / "mine" / "train")
    pixels = torch.from_numpy(real).movedim(-1, 1).float() / 127.5 - 1
    back = codec.decode(codec.encode(pixels)).movedim(1, -1)
    made = ((back + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    return measured(made, pictures_of(out / "mine" / "test"), out / "through.png")


def measured(made: np.ndarray, test: np.ndarray, file: Path) -> dict[str, Any]:
    Image.fromarray(np.concatenate(made[:10], axis=1)).save(file)
    report = evaluate_images(made, test, progress=False)
    return {**report.values, "interval": report.intervals}


def tuned(out: Path, row: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Train a row on `mine/`: what it measures, and the megabytes of a file with what it trained."""
    run = out / f"{row.replace(' ', '-')}-{rate:g}-{steps}-seed{seed}"
    words = [f"init={out}/converted" if word == "init" else word for word in ROWS[row][0]]
    words += [f"optimizer.lr={rate:g}", f"seed={seed}"]
    make = partial(train, run, out / "latents", out / "mine", out / "vae", steps, *words)
    found = remembered(run / "trained.json", make)
    kept = ["lora=keep"] if row == "LoRA" else []
    command("export", f"checkpoint={run}", f"out={run}/exported", "trust=true", *kept)
    files = list((run / "exported").rglob("pytorch_lora_weights.safetensors"))
    files = files or list((run / "exported" / "transformer").glob("*.safetensors"))
    return found | {"megabytes": sum(file.stat().st_size for file in files) / 1e6}


def cells(found: Sequence[dict[str, Any]]) -> str:
    """The columns of a row, with a value for each seed."""

    def one(each: dict[str, Any], name: str) -> str:
        if name not in each:
            return ""
        low, high = each["interval"][name]
        return f"{each[name]:.2f} ({low:.2f} .. {high:.2f})"

    told = [", ".join(filter(None, (one(each, name) for each in found))) for name in COLUMNS]
    taken = [each["seconds"] / 60 for each in found if "seconds" in each]
    size = [f"{each['megabytes']:.2f}" for each in found[:1] if "megabytes" in each]
    return " | ".join([*told, f"{np.mean(taken):.1f}" if taken else "", *(size or [""])])


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    head = f"| | {' | '.join(COLUMNS)} | core minutes | MB trained |"
    lines = [f"| {name} | {cells(found)} |" for name, found in rows.items() if found]
    return "\n".join([head, f"|---{'|---' * (len(COLUMNS) + 2)}|", *lines]) + "\n"


def sheets(out: Path, steps: int, seed: int) -> dict[str, Image.Image]:
    """Pictures of each row, of all classes, at its first rate."""
    found = {"before": Image.open(out / "before.png").convert("RGB")}
    for row, (_, rates) in ROWS.items():
        folder = out / f"{row.replace(' ', '-')}-{rates[0]:g}-{steps}-seed{seed}" / "samples"
        files = [file for file in sorted(folder.glob("*.png")) if file.name != "samples.png"]
        drawn = [
            np.asarray(Image.open(file).convert("RGB")) for file in files[:: max(1, len(files) // 9)][:9]
        ]
        found[f"{row}, {rates[0]:g}"] = Image.fromarray(np.concatenate(drawn, axis=1))
    return found


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument(
        "--published", type=int, default=1500, help="steps of the model that would be downloaded"
    )
    parser.add_argument("--steps", type=int, default=300, help="of each fine-tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuning"))
    options = parser.parse_args()
    out = options.out
    write_pictures(out)
    origin = remembered(out / "origin.json", lambda: published(out, options.published))
    rows = {
        "published, on its own test pictures": [origin],
        "before: converted": [remembered(out / "before.json", lambda: before(out))],
        "real, through the autoencoder": [remembered(out / "through.json", lambda: through_autoencoder(out))],
    }
    for seed in options.seeds:
        for row, (_, rates) in ROWS.items():
            for rate in rates:
                file = out / f"{row.replace(' ', '-')}-{rate:g}-{options.steps}-seed{seed}.json"
                make = partial(tuned, out, row, rate, seed, options.steps)
                rows.setdefault(f"{row}, {rate:g}", []).append(remembered(file, make))
                with replacing(out / "table.md") as stream:
                    stream.write(table(rows).encode())
    picture(sheets(out, options.steps, options.seeds[0])).save(out / "picture.png")
    print(table(rows))


if __name__ == "__main__":
    main()
