"""Can strangers name the generated shapes? An unlabelled sheet, its key, and the share that is named correctly.

    python -m benchmarks.quality.naming runs/pointcloud/default/samples --out runs/naming/0 --key runs/keys/0.txt
    python -m benchmarks.quality.naming real --out runs/naming/real --key runs/keys/real.txt [--more data/]
    python -m benchmarks.quality.naming --key runs/keys/0.txt --answers answers.txt

The sheet shows all shapes of a folder in random order, numbered, in one colour, each from two sides; sheet-1.png and so
on show the same, larger. Give the sheets and classes.txt, but not the key, to whoever names the shapes; an answer is a
line `17 chair`. "other" is one of the classes of the built-in furniture, and shapes that resemble nothing are easily
called so: it is counted separately.

`real` shows as many real shapes of each class as a default run draws: held-out ones first, then training ones, and
where there are too few, held-out ones of another folder of prepared shapes (--more). The share named correctly is the
most that can be asked of a model. Stray points, also printed, lie more than 3.5 medians from their fourth neighbour;
`ditmoe.mesh` leaves them out.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from benchmarks import options_of
from ditmoe.checkpoint import replacing
from modalities.pointcloud.data import Clouds
from modalities.pointcloud.surface.reconstruct import kept_points
from modalities.pointcloud.viz.render import render
from modalities.shared import lay_out, save_png
from modalities.shared.confidence import wilson

AZIMUTHS = (38.0, -70.0)
"""The two sides: the project's own view, and one nearly across."""
CELL, LARGE = 200, 340
"""Pixels along the edge of a picture, on the sheet and on its parts."""
COLUMNS, PART = 6, 18
"""Shapes in a row of the sheet, and on a part of it."""

Shapes = list[tuple[str, Float[np.ndarray, "N 3"]]]
"""The class of each, and its points."""


def drawn(folder: Path) -> Shapes:
    """What `ditmoe.sample` wrote, whose files are called <class>-<number>.npy."""
    return [(file.stem.rsplit("-", 1)[0], np.load(file)[:, :3]) for file in sorted(folder.glob("*.npy"))]


def real(num: int, points: int, more: Path | None) -> Shapes:
    """Built-in shapes, `num` of all classes together as `Conditioning.ask` deals them."""
    sets: list[tuple[Clouds, Sequence[str]]] = [(Clouds(num_points=points), ("test", "val", "train"))]
    if more is not None:
        sets.append((Clouds(num_points=points, root=more), ("test", "val")))
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for clouds, splits in sets:
        for split in splits:
            samples = clouds.reference(split)
            for cloud, label in zip(samples.data, samples.labels, strict=True):  # type: ignore[arg-type]
                found[clouds.classes[label]].append(cloud)
    shapes = []
    classes = sets[0][0].classes
    for i, name in enumerate(classes):
        wanted = len(range(i, num, len(classes)))
        if len(found[name]) < wanted:
            print(f"{name}: {len(found[name])} real shapes where {wanted} are drawn", file=sys.stderr)
        shapes += [(name, cloud) for cloud in found[name][:wanted]]
    return shapes


def tile(points: Float[np.ndarray, "N 3"], size: int) -> np.ndarray:
    """A shape from both sides, beside each other."""
    return np.concatenate([render(points, size, azimuth=azimuth) for azimuth in AZIMUTHS], axis=1)


def write_sheet(shapes: Shapes, out: Path, key: Path, seed: int) -> None:
    """The sheet and its parts, the classes, and the key: `<number> <class>` a line."""
    order = np.random.default_rng(seed).permutation(len(shapes))
    shuffled = [shapes[i] for i in order]
    numbers = [str(number + 1) for number in range(len(shuffled))]
    save = partial(_save, shuffled, numbers)
    save(out / "sheet.png", range(len(shuffled)), CELL, COLUMNS)
    for part, start in enumerate(range(0, len(shuffled), PART), 1):
        some = range(start, min(start + PART, len(shuffled)))
        save(out / f"sheet-{part}.png", some, LARGE, COLUMNS // 2)
    _write(out / "classes.txt", sorted({name for name, _ in shapes}))
    _write(key, [f"{number} {name}" for number, (name, _) in zip(numbers, shuffled, strict=True)])


def _save(shapes: Shapes, numbers: Sequence[str], file: Path, some: range, size: int, columns: int) -> None:
    save_png(file, lay_out([tile(shapes[i][1], size) for i in some], [numbers[i] for i in some], columns))


def _write(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as stream:
        stream.write(("\n".join(lines) + "\n").encode())


def stray(shapes: Shapes) -> list[int]:
    """Stray points of each shape."""
    return [len(points) - len(kept_points(points, len(points))) for _, points in shapes]


def read_names(file: Path) -> dict[int, str]:
    """Number -> class, of a key or of answers; ValueError where a line is neither empty nor both."""
    found: dict[int, str] = {}
    for row, line in enumerate(file.read_text().splitlines(), 1):
        if not (words := line.split(maxsplit=1)):
            continue
        if len(words) != 2 or not words[0].isdecimal():
            raise ValueError(f"{file}:{row} must be a number and a class, as `17 chair`, got {line!r}")
        found[int(words[0])] = words[1].strip().lower()
    return found


def score(key: Mapping[int, str], answers: Mapping[int, str]) -> list[str]:
    """A table: of each class, of all and of all but "other", how many were named rightly; no answer is wrong."""
    groups = {name: [name] for name in sorted(set(key.values()))}
    groups |= {"all": list(groups), "all but other": [name for name in groups if name != "other"]}
    lines = ["| class | named | share | 95 % | called otherwise |", "|---|--:|--:|---|---|"]
    for title, names in groups.items():
        numbers = [number for number, name in key.items() if name in names]
        wrong = [answers.get(number, "nothing") for number in numbers if answers.get(number) != key[number]]
        right = len(numbers) - len(wrong)
        low, high = wilson(right / len(numbers), len(numbers)) if numbers else (0.0, 1.0)
        told = " ".join(sorted(wrong)) if len(names) == 1 else ""
        share = right / max(1, len(numbers))
        lines.append(
            f"| {title} | {right} of {len(numbers)} | {share:.2f} | {low:.2f} .. {high:.2f} | {told} |"
        )
    return lines


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("source", nargs="?", help="a folder of samples, or `real`")
    parser.add_argument("--out", type=Path, default=Path("runs/naming"))
    parser.add_argument("--key", type=Path, required=True, help="where it is written, or lies")
    parser.add_argument("--answers", type=Path, help="of a namer")
    parser.add_argument("--num", type=int, default=54, help="of real shapes")
    parser.add_argument("--points", type=int, default=2048, help="of each real shape")
    parser.add_argument("--more", type=Path, help="prepared shapes for classes that have too few real ones")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    options = parser.parse_args()
    if options.answers is not None:
        try:
            print("\n".join(score(read_names(options.key), read_names(options.answers))))
        except (OSError, ValueError) as error:
            parser.error(str(error))
        return
    if options.source is None:
        parser.error("name a folder of samples, or `real`, or --answers")
    is_real = options.source == "real"
    shapes = real(options.num, options.points, options.more) if is_real else drawn(Path(options.source))
    if not shapes:
        parser.error(f"{options.source} has no .npy of samples")
    write_sheet(shapes, options.out, options.key, options.seed)
    found = stray(shapes)
    print(
        f"{options.out / 'sheet.png'}: {len(shapes)} shapes; stray points {np.mean(found):.1f} a shape, at most "
        f"{max(found)}, none in {found.count(0)} shapes"
    )


if __name__ == "__main__":
    main()
