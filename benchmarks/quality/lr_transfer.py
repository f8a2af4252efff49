"""Does the best learning rate stay the same as the width grows? With muP it should.

    python -m benchmarks.quality.lr_transfer [--modality image] [--widths 64 128 256] [--steps 80] [--seeds 3]

A model of three blocks trains at each width, learning rate and seed, with `model.base_width` at the smallest width and
without it; learning rates are those of the base. Runs of a seed share data, order and noise; linear decay. The loss is
that of the last weights, on batches whose noise no training step saw, the same for all runs of a seed.

Reported for each width: the best learning rate; those that the seeds cannot tell from it (the 95 % interval of the
paired difference contains 0); and the cost of using the base's best instead. Intervals are Student's, over the seeds.
Each finished run is a line of runs.jsonl in --out, so the same command resumes. After each run it rewrites
lr_transfer.json, lr_transfer.md and lr_transfer.png, from seeds that all learning rates of a width have completed.
"""

import copy
import json
import math
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import options_of
from benchmarks.quality.coordinates import data, task
from benchmarks.quality.curves import Curve, Panel, draw_panels
from benchmarks.quality.paired import interval
from ditmoe.checkpoint import replacing
from ditmoe.train import make_trainer
from ditmoe.training import Trainer

Run = dict[str, Any]
Cell = dict[float, dict[int, float]]
"""Losses at one width, by learning rate and seed."""


def make(run: Run) -> Trainer:
    """A trainer of one run."""
    config = copy.deepcopy(task(run["modality"], run["router"]))
    config["model"] |= {"hidden_size": run["width"], "num_heads": run["width"] // 32}
    config["model"]["base_width"] = run["base"] if run["mup"] else None
    config["optimizer"]["lr"], config["seed"] = run["rate"], run["seed"]
    config["trainer"] |= {"steps": run["steps"], "warmup": run["steps"] // 10, "decay": "linear"}
    with TemporaryDirectory() as folder:
        return make_trainer(config, data(run["modality"]), Path(folder))


@torch.no_grad()
def unseen_loss(trainer: Trainer, batches: int = 16) -> float:
    """Mean loss of the prediction over batches of the training data with noise of their own."""
    losses = [trainer.losses(trainer.batches(1_000_000 + i))[0].parts["loss"] for i in range(batches)]
    return torch.stack(losses).mean().item()


def train(run: Run) -> Run:
    """Loss after the steps; infinite where training failed."""
    start, trainer = time.process_time(), make(run)
    for _ in range(run["steps"]):
        numbers = trainer._train_step()
        if numbers is None or not math.isfinite(numbers["losses"]["loss"]):
            return {**run, "loss": math.inf, "seconds": round(time.process_time() - start, 1)}
        trainer.step += 1
    return {**run, "loss": unseen_loss(trainer), "seconds": round(time.process_time() - start, 1)}


def plain(value: Any) -> Any:
    """What JSON can say: numbers that are none, or infinite, are null."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cells(runs: list[Run]) -> dict[tuple[bool, int], Cell]:
    """Losses by parameterisation and width, of seeds that all learning rates have seen: others would not be fair."""
    found: dict[tuple[bool, int], Cell] = {}
    rates = {run["rate"] for run in runs}
    for run in runs:
        cell = found.setdefault((run["mup"], run["width"]), {rate: {} for rate in rates})
        cell[run["rate"]][run["seed"]] = run["loss"]
    for key, cell in found.items():
        seeds = set.intersection(*(set(losses) for losses in cell.values()))
        found[key] = {rate: {seed: losses[seed] for seed in seeds} for rate, losses in cell.items()}
    return {key: found[key] for key in sorted(found) if all(found[key].values())}


def mean(losses: dict[int, float]) -> float:
    return statistics.mean(losses.values())


def difference(cell: Cell, rate: float, other: float) -> tuple[float, float]:
    """Loss at a rate less that at another, seed by seed: mean and half of its 95 % interval."""
    seeds = sorted(cell[rate].keys() & cell[other].keys())
    pairs = [cell[rate][s] - cell[other][s] for s in seeds]
    return interval(pairs) if all(map(math.isfinite, pairs)) else (math.inf, math.nan)


def summary(runs: list[Run], base: int) -> list[dict[str, Any]]:
    """Of each width what the runs say; of widths that all rates have seen."""
    by_width = cells(runs)
    rates = {run["rate"] for run in runs}
    rows = []
    for (mup, width), cell in by_width.items():
        if not (root := by_width.get((mup, base))):
            continue
        best, at_base = (min(c, key=lambda r, c=c: mean(c[r])) for c in (cell, root))
        far = {rate: difference(cell, rate, best) for rate in sorted(cell) if rate != best}
        loss, half = interval(list(cell[best].values()))
        cost, width_of_cost = difference(cell, at_base, best) if at_base != best else (0.0, 0.0)
        rows.append(
            {
                "mup": mup,
                "width": width,
                "best": best,
                "seeds": len(cell[best]),
                "loss": loss,
                "half": half,
                "not told apart": [rate for rate, (d, h) in far.items() if not d - h > 0],
                "base's best": at_base,
                "cost of it": cost,
                "half of the cost": width_of_cost,
                "edge": best in (min(rates), max(rates)),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The summary as Markdown."""
    lines = [
        "| width | seeds | best rate | loss there | not told apart | loss at the base's best rate less that |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        name = f"{r['width']}, {'muP' if r['mup'] else 'standard'}"
        others = ", ".join(f"{rate:g}" for rate in r["not told apart"]) or "none"
        best = f"{r['best']:g}{' (at the edge)' if r['edge'] else ''}"
        cost = (
            f"{r['cost of it']:+.3f} ± {r['half of the cost']:.3f}"
            if r["best"] != r["base's best"]
            else "same"
        )
        loss = f"{r['loss']:.3f} ± {r['half']:.3f}"
        lines.append(f"| {name} | {r['seeds']} | {best} | {loss} | {others} | {cost} |")
    return "\n".join(lines)


def picture(runs: list[Run], file: Path) -> None:
    """Loss over the learning rate, a curve for each width, a panel for each parameterisation."""
    by_width = cells(runs)
    panels = []
    for mup in (False, True):
        curves = []
        for (own, width), cell in by_width.items():
            if own == mup:
                rates = sorted(cell)
                values = [mean(cell[r]) for r in rates]
                halves = [interval(list(cell[r].values()))[1] for r in rates]
                ends = [[v + sign * h for v, h in zip(values, halves, strict=True)] for sign in (-1, 1)]
                curves.append(Curve(f"width {width}", rates, values, *ends, mark=values.index(min(values))))
        panels.append(Panel("muP" if mup else "standard", "learning rate", "loss", curves))
    draw_panels(panels, file, columns=2)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--modality", default="image")
    parser.add_argument("--router", default="token_choice")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256], help="multiples of 32")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3, 16e-3, 32e-3, 64e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("runs/lr_transfer"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    base, file = min(options.widths), options.out / "runs.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    done = [
        {**run, "loss": math.inf if run["loss"] is None else run["loss"]} for run in map(json.loads, lines)
    ]
    todo: list[Run] = [
        {
            "modality": options.modality, "router": options.router, "base": base, "steps": options.steps,
            "width": width, "rate": rate, "seed": seed, "mup": mup,
        }
        for seed in range(options.seeds)
        for width in sorted(options.widths)
        for rate in options.rates
        for mup in (False, True)
    ]  # fmt: skip
    runs: list[Run] = []
    for index, run in enumerate(todo):
        same = {**run, "mup": False} if run["width"] == base else run  # at the base width they are equal
        found = next((d for d in [*done, *runs] if d.items() >= same.items()), None)
        if found is None:
            found = train(same)
            with file.open("a") as stream:
                stream.write(json.dumps(plain(found)) + "\n")
            kind = "muP" if run["mup"] else "standard"
            where = f"width {run['width']} {kind}, rate {run['rate']:g}, seed {run['seed']}"
            print(f"{index + 1} of {len(todo)}: {where}, loss {found['loss']:.4f}", flush=True)
        runs.append({**found, "mup": run["mup"]})
        if found in done and run != todo[-1]:
            continue
        rows = summary(runs, base)
        with replacing(options.out / "lr_transfer.json") as whole:
            whole.write(json.dumps(plain({"runs": runs, "summary": rows}), indent=1).encode())
        (options.out / "lr_transfer.md").write_text(table(rows) + "\n")
        picture(runs, options.out / "lr_transfer.png")
    print(table(summary(runs, base)))


if __name__ == "__main__":
    main()
