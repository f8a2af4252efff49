"""How an image model fills holes in the held-out built-in digits, against baselines that need no model.

    python -m ditmoe.train modality=image given=0.7 trainer.condition_dropout=0.3 name=fills_in
    python -m benchmarks.quality.given_pictures runs/image/fills_in [--other runs/image/default] [--num 128]

A hole in the middle (a quarter of the picture), one half a token off the grid and one over the right half are filled,
without a label. Per picture:

    class   whether a classifier, trained on real digits, recognises the original digit
    ring    step across the border of the hole, relative to the mean of the real pictures there
    PSNR    of the hole, in dB; nobody knows what should be there, so a blur scores well

Means with 95 % bootstrap intervals over pictures. "mean" fills with the mean colour of what is given; "nearest" with
the training picture that is nearest there; "replacement" is the same model, not told what is given; "without" is
another model, not trained with given parts (--other). Rows that are in --out/pictures.json are not drawn again.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import options_of
from benchmarks.quality.class_control import classifier, labels, learn, pixels, right
from benchmarks.quality.given import interval
from ditmoe.checkpoint import replacing
from ditmoe.config import build
from ditmoe.config.restore import Restored, restore
from ditmoe.config.words import parts_asked
from ditmoe.diffusion import Sampling
from ditmoe.inference import draw
from ditmoe.modality import Samples
from modalities.shared import enlarged, lay_out, save_png

Pictures = np.ndarray
"""uint8 (S, H, W, 3)"""


def holes(size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Name -> where something is to be drawn."""
    height, width = size
    middle, half = np.zeros(size, bool), np.zeros(size, bool)
    middle[height // 4 : -height // 4, width // 4 : -width // 4] = True
    half[:, width // 2 :] = True
    beside = np.zeros(size, bool)
    beside[3 * height // 8 : -3 * height // 8, 3 * width // 8 : -width // 8] = True
    return {"middle": middle, "beside the grid": beside, "right half": half}


def fill(
    restored: Restored, real: Pictures, hole: np.ndarray, trained: float, guidance: float, steps: int
) -> Pictures:
    """Each picture's hole filled by a model; drawn together, as one hole serves all."""
    mask = hole.astype(np.uint8) * 255
    each = [parts_asked(restored.modality, one, {}, {"mask": mask}, trained) for one in real]
    wanted = [parts for parts in each if parts is not None]
    given = replace(wanted[0].given, x=torch.cat([parts.given.x for parts in wanted]))
    x = draw(
        restored.model, restored.modality, restored.process, build.make(restored.config["scheduler"]),
        Sampling(steps, 1.0), restored.model.conditioning.nothing(len(real)), seed=1, batch_size=64,
        parts=replace(wanted[0], given=given), given_guidance=guidance,
    )  # fmt: skip
    drawn = restored.modality.decode(x)  # type: ignore[attr-defined]
    made = np.concatenate([parts.finish(one[None]) for parts, one in zip(wanted, drawn, strict=True)])
    assert (made[:, ~hole] == real[:, ~hole]).all(), "what is given must come out to the bit"
    return made


def plain(real: Pictures, train: Pictures, hole: np.ndarray) -> dict[str, Pictures]:
    """What needs no model."""
    mean, nearest = real.copy(), real.copy()
    mean[:, hole] = real[:, ~hole].mean(1, keepdims=True).round()
    known, others = (of[:, ~hole].reshape(len(of), -1).astype(np.float32) for of in (real, train))
    far = (known**2).sum(1)[:, None] + (others**2).sum(1) - 2 * known @ others.T
    nearest[:, hole] = train[far.argmin(1)][:, hole]
    return {"real": real, "mean": mean, "nearest": nearest}


def ring(pictures: Pictures, hole: np.ndarray) -> np.ndarray:
    """Mean absolute step from pixels of a hole to those beside it, of each picture."""
    grey, steps = pictures.mean(-1), []
    for axis in (0, 1):
        across = np.diff(hole.astype(int), axis=axis) != 0
        steps.append(np.abs(np.diff(grey, axis=axis + 1))[:, across])
    return np.concatenate(steps, 1).mean(1)


def measured(
    model: torch.nn.Module, made: Pictures, real: Pictures, hole: np.ndarray, asked: torch.Tensor
) -> list[str]:
    """The cells of a row."""
    kept = right(model, pixels(Samples(made)), asked).numpy().astype(float)
    steps = ring(real, hole)
    error = ((made[:, hole].astype(float) - real[:, hole]) ** 2).mean((1, 2))
    psnr = interval(10 * np.log10(255**2 / np.maximum(error, 1e-9))) if error.any() else ""
    return [interval(kept), interval(ring(made, hole) / steps.mean()), psnr]


def sheet(made: dict[str, Pictures], hole: np.ndarray, file: Path, num: int = 8) -> None:
    """A line for each of the first pictures, a column for each row of the table."""
    seen = np.where(hole[..., None], 128, made["real"]).astype(np.uint8)
    columns = {
        "real": made["real"],
        "hole": seen,
        **{name: of for name, of in made.items() if name != "real"},
    }
    tiles = [enlarged(of[i]) for i in range(num) for of in columns.values()]
    names = [
        name.removeprefix("of ").removeprefix("given, ") if not i else ""
        for i in range(num)
        for name in columns
    ]
    save_png(file, lay_out(tiles, names, columns=len(columns)))


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--other", type=Path, help="a run that was not trained with given parts")
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--out", type=Path, help="a folder for numbers and pictures; the run's by default")
    options = parser.parse_args()
    restored = restore(options.checkpoint)
    train, test = (restored.modality.reference(split) for split in ("train", "test"))  # type: ignore[attr-defined]
    real, asked = test.data[: options.num], labels(test)[: options.num]
    torch.manual_seed(0)
    model = classifier(len(restored.modality.classes))
    learn(model, pixels(train), labels(train))
    model.eval()
    out = options.out or restored.folder / "given"
    out.mkdir(parents=True, exist_ok=True)
    file = out / "pictures.json"
    rows: dict[str, list[str]] = json.loads(file.read_text()) if file.exists() else {}
    print("| hole | row | class | ring | PSNR |\n|---|---|---|---|---|")
    for place, hole in holes(real.shape[1:3]).items():
        drawn = {
            "replacement": (restored, 0.0, 1.0),
            "given": (restored, 1.0, 1.0),
            f"given, guidance {options.guidance:g}": (restored, 1.0, options.guidance),
        }
        if options.other is not None:
            drawn = {"without": (restore(options.other), 0.0, 1.0), **drawn}
        sheets = plain(real, train.data, hole)
        for name, made in sheets.items():
            rows[f"{place}/{name}"] = measured(model, made, real, hole, asked)
        for name, (by, trained, guidance) in drawn.items():
            key, kept = f"{place}/{name}", out / f"{place} {name}.npz".replace(" ", "-").replace(",", "")
            if key not in rows or not kept.exists():
                made = fill(by, real, hole, trained, guidance, options.steps)
                np.savez_compressed(kept, pictures=made)
                rows[key] = measured(model, made, real, hole, asked)
                with replacing(file) as stream:
                    stream.write(json.dumps(rows, indent=1).encode())
            sheets[name] = np.load(kept)["pictures"]
        for name in sheets:
            print(f"| {place} | {name} | {' | '.join(rows[f'{place}/{name}'])} |", flush=True)
        sheet(sheets, hole, out / f"{place}.png".replace(" ", "-"))


if __name__ == "__main__":
    main()
