"""Completion of one-view scans of held-out furniture, against baselines that need no model.

    python -m benchmarks.quality.completion [--run runs/pointcloud/completion] [--steps 5000] [--init RUN]

Trains with `given=0.7` in the folder --run, unless it is trained (the same command also resumes the training). Then it
completes a scan of each shape of val and test, several times each, without a label:

- trained: the model reads the scan, which is also held in the noisy cloud (what `sample given=scan.ply` does).
- trained, not held: the model only reads the scan.
- guided: as trained, with given_guidance=1.5.
- replacement alone: the same weights; the scan is only held in the cloud.
- nothing given.

Scans show 2,048 points of a shape by hidden point removal, from --views views. The true shape is 2,048 other points of
it, so that no point is right by being identical. Last, 256 points from all over the shape become 2,048: from noise, and
with `strength=0.2` from the points themselves. Each finished row is kept in --run/completion-<steps>/, where the table,
with 95 % intervals over the shapes, and a sheet of some shapes are written.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ditmoe.checkpoint import exists, replacing
from ditmoe.config.restore import Restored, restore
from ditmoe.config.words import parts_asked
from ditmoe.given import Parts
from ditmoe.outside import file_name
from ditmoe.sample import draw_from
from modalities.pointcloud import PointCloud
from modalities.pointcloud.data.partial import scan
from modalities.pointcloud.metrics.completion import (
    MIRROR,
    NEAREST,
    SCAN,
    baselines,
    interval,
    intervals,
    means,
    measure,
    shapes_of,
)
from modalities.pointcloud.viz.contact_sheet import contact_sheet
from modalities.shared import save_png

Clouds = list[np.ndarray]
NUM, FEW = 2048, 256
COLUMNS = {"cd": 1000, "f-score": 1, "hidden": 100, "astray": 100, "uhd": 100, "tmd": 1000, "mmd": 1000}
"""With the factor by which a table shows them."""
PAIRED = ("cd", "hidden", "astray")
"""Those whose differences to a row are shown too."""


def train(folder: Path, steps: int, init: str | None) -> None:
    """The run, or what is left of it."""
    words = [f"hydra.run.dir={folder}", "modality=pointcloud", "given=0.7", f"trainer.steps={steps}"]
    words += ["trainer.save_every=250", "trainer.preview_every=0", "finish.num=0", "finish.evaluate=false"]
    words += [f"init={init}"] if init else []
    if code := subprocess.run([sys.executable, "-m", "ditmoe.train", *words], check=False).returncode:
        sys.exit(code)


def shapes(modality: PointCloud, limit: int | None, views: int) -> tuple[Clouds, Clouds, Clouds, list[str]]:
    """Scans of held-out shapes, a few points of each shape, all over, the true shapes, and their names.

    The scans are one view of all shapes, and behind it the next.
    """
    clouds: Clouds = []
    names: list[str] = []
    for split in ("val", "test"):
        found = modality.data.reference(split, 2 * NUM)
        clouds += list(found.data)
        names += list(found.names or ())
    clouds, names = clouds[:limit], names[:limit]
    sources = [cloud[NUM:] for cloud in clouds]
    scans = [
        cloud[scan(cloud, np.random.default_rng([view, i]))]
        for view in range(views)
        for i, cloud in enumerate(sources)
    ]
    return scans, [cloud[:FEW] for cloud in sources], [cloud[:NUM] for cloud in clouds], names


def complete(
    restored: Restored,
    scans: Clouds,
    options: argparse.Namespace,
    row: str,
    out: Path,
    name: str = "",
    strength: float | None = None,
) -> list[Clouds]:
    """Completions of each scan; those that an earlier call left are read."""
    how, change, words = ROWS[row]
    file = out / f"{file_name(name or row)}.npz"
    if not file.exists():
        found = []
        for i, points in enumerate(tqdm(scans, name or row)):
            parts = parts_asked(restored.modality, points, {}, how, 1.0, strength)
            assert parts is not None
            asked = restored.model.conditioning.ask(options.completions, restored.modality.classes).nothing
            drawn = draw_from(
                restored, asked, steps=options.draw_steps, guidance=1.0, seed=i, parts=change(parts), **words
            )
            assert drawn is not None
            found.append(drawn.data)
        with replacing(file) as stream:
            np.savez_compressed(stream, points=np.stack(found))
    with np.load(file) as content:
        return [list(of) for of in content["points"]]


def as_it_is(parts: Parts) -> Parts:
    """The scan is read."""
    return parts


def unread(parts: Parts) -> Parts:
    """The scan is not read."""
    return replace(parts, given=parts.given.untold())


FREE = {"hold": False}
ROWS: dict[str, tuple[dict[str, Any], Callable[[Parts], Parts], dict[str, Any]]] = {
    "trained": ({}, as_it_is, {}),
    "replacement alone": ({}, unread, {}),
    "trained, not held": (FREE, as_it_is, {}),
    "guided": ({}, as_it_is, {"given_guidance": 1.5}),
    "nothing given": (FREE, unread, {}),
}
"""What is said of the scan, what is changed then, and how it is drawn."""


def line(name: str, each: dict[str, np.ndarray], than: dict[str, np.ndarray], of: np.ndarray) -> str:
    """A row of the table: means, their intervals, and those of differences to another row, scan by scan.

    Args:
        of: which shape each scan is of.
    """
    value, ends, cells = means(each), intervals(each, of), []
    for column, factor in COLUMNS.items():
        if column in value:
            low, high = (factor * end for end in ends[column])
            cells.append(f"{factor * value[column]:.2f} ({low:.2f} .. {high:.2f})")
        else:
            cells.append("")
    for column in PAIRED:
        difference = COLUMNS[column] * (each[column] - than[column])
        low, high = interval(difference, of)
        cells.append(f"{low:+.2f} .. {high:+.2f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def table(rows: dict[str, dict[str, np.ndarray]], than: str, of: np.ndarray) -> list[str]:
    """Markdown."""
    heads = [f"{name} x{factor}" if factor > 1 else name for name, factor in COLUMNS.items()]
    heads += [f"{name} less that of {than!r}" for name in PAIRED]
    lines = ["| (95 % over shapes) | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    return lines + [line(name, each, rows[than], of) for name, each in rows.items()]


def sheet(columns: Mapping[str, Sequence[np.ndarray]], names: Sequence[str], file: Path) -> None:
    """A line for each shape."""
    clouds = [column[i] for i in range(len(names)) for column in columns.values()]
    labels = [name if i else names[row] for row in range(len(names)) for i, name in enumerate(columns)]
    save_png(file, contact_sheet(clouds, labels, columns=len(columns), colors=[(70, 110, 160)] * len(clouds)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/pointcloud/completion"))
    parser.add_argument("--steps", type=int, default=5000, help="of training")
    parser.add_argument("--init", help="a run to start from")
    parser.add_argument("--views", type=int, default=1, help="scans of each shape")
    parser.add_argument("--completions", type=int, default=3, help="of each scan")
    parser.add_argument("--draw-steps", type=int, default=20)
    parser.add_argument("--limit", type=int, help="shapes")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--trained", action="store_true", help="take the run as it is")
    options = parser.parse_args()
    if not (options.trained and exists(options.run)):
        train(options.run, options.steps, options.init)
    restored = restore(options.run)
    modality = restored.modality
    assert isinstance(modality, PointCloud)
    out = options.run / f"completion-{options.steps}"
    out.mkdir(exist_ok=True)
    scans, few, truth, names = shapes(modality, options.limit, options.views)
    of_scans = truth * options.views
    training = list(modality.data.reference("train", NUM).data)
    sizes = [len(part) for part in scans]
    print(
        f"{len(scans)} scans of {min(sizes)} to {max(sizes)} points, {np.mean(sizes) / NUM:.0%} of a shape's"
    )
    clouds: dict[str, list[Clouds]] = baselines(scans, training)
    for name in options.only:
        clouds[name] = complete(restored, scans, options, name, out)
    rows = {name: measure(scans, of, of_scans) for name, of in clouds.items()}
    above = {"256 points alone": measure(few, [[part] for part in few], truth)}
    for name, strength in {"from noise": None, "by strength=0.2": 0.2}.items():
        more = complete(restored, few, options, "trained", out, f"2,048 {name}", strength)
        above[f"2,048 {name}"] = measure(few, more, truth)
    text = "\n".join(
        [
            *table(rows, "trained" if "trained" in rows else MIRROR, shapes_of(of_scans)),
            "",
            *table(above, "256 points alone", shapes_of(truth)),
            "",
        ]
    )
    with replacing(out / "completion.md") as stream:
        stream.write(text.encode())
    shown = list(range(0, len(names), max(1, len(names) // 8)))[:8]
    columns: dict[str, list[np.ndarray]] = {"true": truth, SCAN: scans}
    shown_rows = [name for name in (MIRROR, NEAREST, "replacement alone", "trained") if name in clouds]
    columns |= {name: [of[0] for of in clouds[name]] for name in shown_rows}
    if "trained" in clouds:
        columns["trained, another"] = [of[-1] for of in clouds["trained"]]
    picked = {name: [column[i] for i in shown] for name, column in columns.items()}
    sheet(picked, [names[i] for i in shown], out / "completion.png")
    print(f"{text}\n{out / 'completion.png'}")


if __name__ == "__main__":
    main()
