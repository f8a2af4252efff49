"""Several analyses side by side: what the choice of an expert depends on, as one table and one picture.

    python -m ditmoe.analyze checkpoint=starter/image samples=64 out=runs/experts/image
    python -m benchmarks.quality.experts runs/experts/image runs/experts/video [--picture experts.png]

The folders are those that `ditmoe.analyze` wrote. Bits are the mutual information of the choice with time, place and
class, less what chance gives, with 95 % intervals over samples. The picture shows them at the top, beside the level
that 95 of 100 permutations stay below, and underneath how much more often each expert is chosen at a time than
overall.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import options_of
from ditmoe.analysis.charts import Line, heat, plot, stacked
from ditmoe.analysis.pictures import DOUBLED, LIFT, lift

FACTORS = ("time", "place", "class", "time given place", "class given place")
Analysis = dict[str, Any]


def read(folder: Path) -> Analysis:
    """An analysis, and the counts that the picture needs."""
    with np.load(folder / "analysis.npz") as arrays:
        return json.loads((folder / "analysis.json").read_text()) | {"by time": arrays["counts/time"]}


def name(found: Analysis) -> str:
    """What was analysed."""
    return f"{found['protocol']['modality']}, {found['protocol']['router']}"


def table(analyses: list[Analysis]) -> str:
    """A column for each, a line for each factor; layers from the first to the last."""
    lines = [f"| bits of | {' | '.join(map(name, analyses))} |", "|---" * (len(analyses) + 1) + "|"]
    for factor in FACTORS:
        cells = []
        for found in analyses:
            of = found["dependence"].get(factor, {"bits": [], "interval": [], "p": []})
            each = zip(of["bits"], of["interval"], of["p"], strict=True)
            cells.append("; ".join(f"{bits:.3f} ({a:.3f} .. {b:.3f}){_p(p)}" for bits, (a, b), p in each))
        lines.append(f"| {factor} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _p(p: float) -> str:
    return "" if p < 0.006 else f" p {p:.2g}"  # the smallest p of 200 permutations


def bits(analyses: list[Analysis], factor: str) -> Image.Image:
    """Those of all layers of all models."""
    lines, ticks, x = [], [], 0.0
    chance: tuple[list[float], list[float]] = ([], [])
    for found in analyses:
        of = found["dependence"].get(factor)
        places = [x + i for i in range(len(found["blocks"]))]
        if of:
            low, high = zip(*of["interval"], strict=True)
            lines.append(Line(found["protocol"]["modality"], places, of["bits"], low, high))
            chance[0].extend(places)
            chance[1].extend(top - mean for top, mean in zip(of["null_95"], of["null_mean"], strict=True))
        ticks += list(zip(places, found["blocks"], strict=True))
        x = places[-1] + 1.7
    lines.append(Line("chance, 95 %", *chance))
    return plot(lines, factor, "layer", ticks, joined=False, size=(330, 250))


def picture(analyses: list[Analysis]) -> np.ndarray:
    """All of it as RGB."""
    panels = [bits(analyses, factor) for factor in FACTORS]
    maps = []
    for found in analyses:
        titles = [f"{found['protocol']['modality']}, layer {block}" for block in found["blocks"]]
        starts = [bin.split("-")[0] for bin in found["bins"]]
        for of, title in zip(lift(found["by time"]), titles, strict=True):
            maps.append(heat(of, DOUBLED, title, range(len(of)), starts, (28, 12)))
    rows = [panels[:3], panels[3:], *(maps[i : i + 4] for i in range(0, len(maps), 4))]
    return stacked(
        rows,
        "What the choice of an expert depends on (bits), and experts by time, 0 data to 1000 noise",
        LIFT,
    )


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="that ditmoe.analyze wrote")
    parser.add_argument("--picture", type=Path, help="a PNG to write")
    options = parser.parse_args()
    analyses = [read(folder) for folder in options.folders]
    print(table(analyses))
    if options.picture:
        Image.fromarray(picture(analyses)).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
