"""How much guidance, and at which times? Chosen on the validation split, reported on the test split.

    python -m benchmarks.quality.guidance starter/image [--steps 25] [--out runs/guidance/image]
        [--weights 1 1.5 2 3 4] [--intervals 0,1000 0,700 300,1000 300,700]

Each guidance weight within each interval of times (arXiv 2404.07724) is sampled from the same starting noise and
measured against val. Candidates are those whose class agreement (of clips, the share of frames with two digits) is not
below the lower end of the interval for the model's own guidance. Of these the one with the lowest Frechet distance or
1-NNA is chosen, and measured against test beside the model's own guidance and none. Each cell is kept in --out, so the
same command resumes. Within an interval, a step costs a second pass of the network.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import options_of
from benchmarks.quality.samplers import measured, shown
from ditmoe.config.restore import restore
from ditmoe.diffusion import Sampling

CHOSEN_BY = ("fd/pixels", "1-nna/emd")
SHOWS = ("law/two", "classes/agreement")


def grid(weights: list[float], intervals: list[tuple[float, ...]]) -> Iterator[dict[str, Any]]:
    """What is drawn; a weight of 1 is no guidance, at whatever times."""
    for weight, interval in product(weights, intervals):
        if weight != 1 or interval == intervals[0]:
            yield {"guidance": weight, "interval": interval}


def passes(words: dict[str, Any], steps: int) -> float:
    """Of the network for a sample."""
    low, high = words["interval"]
    return steps * (1 + (words["guidance"] != 1) * (high - low) / 1000)


def cell(path: str, split: str, out: Path, steps: int, words: dict[str, Any]) -> dict[str, Any]:
    low, high = words["interval"]
    folder = out / split / f"{words['guidance']:g}-{low:g}-{high:g}-{steps}"
    return measured(path, split, folder, steps=steps, **words)


def row(found: dict[str, Any], steps: int, words: dict[str, Any]) -> str:
    low, high = words["interval"]
    when = "" if words["guidance"] == 1 else f"{low:g} to {high:g}"
    return f"| {words['guidance']:g} | {when} | {passes(words, steps):.0f} | {' | '.join(shown(found).values())} |"


def first(names: Sequence[str], found: dict[str, Any]) -> str:
    """The one of them that a modality measures."""
    return next(name for name in names if name in found)


def best(tried: list[tuple[dict[str, Any], dict[str, Any]]], own: dict[str, Any]) -> dict[str, Any]:
    """The words whose samples are nearest to val, of those that show what was asked for as often as the own do."""
    distance, control = first(CHOSEN_BY, own), first(SHOWS, own)
    least = own["interval"][control][0]
    return min((pair for pair in tried if pair[1][control] >= least), key=lambda pair: pair[1][distance])[0]


def head(title: str, found: dict[str, Any]) -> str:
    columns = shown(found)
    rule = "|--:|---|--:|" + "---|" * len(columns)
    return f"\n**{title}**\n\n| guidance | times | passes | {' | '.join(columns)} |\n{rule}"


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--weights", type=float, nargs="+", default=[1, 1.5, 2, 3, 4])
    parser.add_argument("--intervals", nargs="+", default=["0,1000", "0,700", "300,1000", "300,700"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    path, steps = options.checkpoint, options.steps
    out = options.out or Path("runs/guidance") / Path(path).name
    intervals = [tuple(float(time) for time in said.split(",")) for said in options.intervals]

    sampling = Sampling.of(restore(path, trusted=True).config)
    own = {"guidance": sampling.guidance, "interval": tuple(sampling.interval)}
    none = {"guidance": 1.0, "interval": intervals[0]}
    reference = cell(path, "val", out, steps, own)
    print(head("val", reference))
    tried = []
    for words in grid(options.weights, intervals):
        tried.append((words, cell(path, "val", out, steps, words)))
        print(row(tried[-1][1], steps, words), flush=True)

    print(head("test: none, the model's own, and what was chosen on val", reference))
    for words in (none, own, best([*tried, (own, reference)], reference)):
        print(row(cell(path, "test", out, steps, words), steps, words), flush=True)


if __name__ == "__main__":
    main()
