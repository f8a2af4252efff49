"""Coordinate check of muP: size of activations after a few steps, over widths (arXiv 2203.03466, appendix D.1).

    python -m benchmarks.quality.coordinates [--routers token_choice race] [--modalities image] [--widths 64 128 256]

Each router with each modality, at each width, with and without `model.base_width=128`, takes a few AdamW steps with the
trainer on built-in data. One more batch, the same for all, then goes through the model. Root mean squares are recorded:

    embed, time     tokens and the embedded time before the first block
    attention, mlp  outputs of attention and of the feed-forward layers, mean over blocks
    stream          the residual stream after the last block
    logits          standard deviation of the log of a router's scores over the experts, mean over layers
    output          the model's prediction

A parameterisation is right if they do not depend on the width; in the standard one some grow with it. Three blocks, 8
experts; heads keep their size of 32, or with `--heads 4` their number. Each finished point is a line of points.jsonl in
--out, so the same command resumes. At the end it writes coordinates.json and coordinates.png and prints the table:
values at the largest width relative to the base width, all but the first column under muP.
"""

import copy
import gc
import json
import math
import statistics
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks import options_of
from benchmarks.quality.curves import Curve, Panel, draw_panels
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.config.folders import config_folder
from ditmoe.modality import Modality
from ditmoe.moe import Routing
from ditmoe.train import make_trainer
from ditmoe.training import Trainer

BASE = 128
TASK = [
    "model=nano", "model.depth=3", "model.moe_layers=null", "model.shared_ratio=0.5", "model.expert_ratio=0.25",
    "model.dense_ratio=1.0", "trainer.precision=fp32", "trainer.warmup=0", "trainer.decay=constant",
    "trainer.preview_every=0", "trainer.save_every=0", "trainer.log_every=0", "finish.num=0", "finish.evaluate=false",
]  # fmt: skip
MODALITIES = {
    "image": ["trainer.batch_size=16"],
    "pointcloud": ["trainer.batch_size=4", "modality.num_points=256", "modality.tokens.resolution=16"],
    "video": ["trainer.batch_size=4", "modality.frames=5"],
}
SEEN = ("stream", "attention", "mlp", "output")
"""Whose growth counts: what the strict rule keeps (it lets the logits at birth fade)."""
Point = dict[str, Any]


def routers() -> list[str]:
    """Every router of ditmoe."""
    files = sorted((config_folder() / "router").glob("*.yaml"))
    return [file.stem for file in files if not file.stem.startswith(("for_", "_"))]


@cache
def task(modality: str, router: str) -> dict[str, Any]:
    """The configuration of all points of a router with a modality; not to be changed."""
    own = ["router.capacity=[2.0]"] if router == "expert_choice" else []  # of all layers
    return composed("train", [f"modality={modality}", f"router={router}", *TASK, *MODALITIES[modality], *own])


@cache
def data(modality: str) -> Modality:
    """A modality, whose codec is fitted once."""
    return build.make_modality(task(modality, "dense"))


def make(point: Point) -> Trainer:
    """A trainer of one point."""
    config = copy.deepcopy(task(point["modality"], point["router"]))
    width, heads = point["width"], point["heads"] or point["width"] // 32
    config["model"] |= {"hidden_size": width, "num_heads": heads}
    config["optimizer"]["lr"], config["trainer"]["steps"] = point["rate"], point["steps"]
    config["seed"] = point["seed"]
    if point["mup"]:
        at_base = {"base_width": BASE, "base_heads": point["heads"] or None}
        config["model"] |= at_base | {"keep_router_logits": point["kept"]}
    with TemporaryDirectory() as folder:
        return make_trainer(config, data(point["modality"]), Path(folder))


def size(x: Any) -> float:
    """Root mean square of a tensor, or of the first of several."""
    x = x[0] if isinstance(x, tuple) else x
    return x.detach().float().square().mean().sqrt().item()


def log_scores(routings: list[Routing]) -> float:
    """Deviation of the logarithms of a token's scores over the experts, of those that are above zero."""
    found = []
    for scores in (r.scores.detach() for r in routings):
        above = scores > 1e-12
        logs = torch.where(above, scores.clamp_min(1e-12).log(), 0)
        away = torch.where(
            above, logs - logs.sum(1, keepdim=True) / above.sum(1, keepdim=True).clamp_min(1), 0
        )
        found.append((away.square().sum() / above.sum().clamp_min(1)).sqrt().item())
    return statistics.mean(found)


@torch.no_grad()
def coordinates(trainer: Trainer) -> dict[str, float]:
    """How large the activations of one batch are, which is no batch of the training."""
    model, found = trainer.model, {}
    handles = []

    def watch(module: nn.Module, name: str) -> None:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            found.setdefault(name, []).append(size(output))

        handles.append(module.register_forward_hook(note))

    watch(model.embed, "embed")
    watch(model.timestep, "time")
    for block in model.blocks:
        watch(block.attention, "attention")
        watch(block.feed_forward, "mlp")
    watch(model.blocks[-1], "stream")
    watch(model, "output")
    batch = trainer.batches(1_000_000).to(trainer.device)
    losses, routings = trainer.losses(batch)
    for handle in handles:
        handle.remove()
    values = {name: statistics.mean(sizes) for name, sizes in found.items()} | {"loss": float(losses.total)}
    return values | ({"logits": log_scores(routings)} if routings else {})


def run(point: Point) -> Point:
    """Coordinates at birth and after the steps."""
    start = time.process_time()
    trainer = make(point)
    before = coordinates(trainer)
    for _ in range(point["steps"]):
        trainer._train_step()
        trainer.step += 1
    result = {**point, "before": before, "after": coordinates(trainer)}
    return result | {"seconds": round(time.process_time() - start, 1)}


def growth(points: list[Point], name: str, width: int) -> float:
    """Value after the steps at a width over that at the base width, geometric mean over the seeds that have both."""
    at = {(p["width"], p["seed"]): p["after"].get(name, math.nan) for p in points}
    seeds = [seed for own, seed in at if own == width and (BASE, seed) in at]
    over = [at[width, seed] / at[BASE, seed] for seed in seeds]
    return statistics.geometric_mean(over) if all(over) else 0.0  # a silent layer


def table(groups: dict[tuple[str, str], dict[bool, list[Point]]]) -> tuple[str, list[dict[str, Any]]]:
    """Growth as Markdown, a line for each router with each modality, and as plain values."""
    names = [*SEEN, "logits"]
    lines = [
        f"| modality, router | width | stream, standard | {' | '.join(names)} | farthest of widths from {BASE} on |"
    ]
    lines += ["|---" * (len(names) + 4) + "|"]
    rows = []
    for (modality, router), both in groups.items():
        grown = {mup: grown_by(points) for mup, points in both.items()}
        rows += [
            {"modality": modality, "router": router, "mup": mup, "growth": of}
            for mup, of in grown.items()
            if of
        ]
        if not (values := grown.get(True)):
            continue
        width = max(values["stream"])
        standard = grown.get(False, {}).get("stream", {}).get(width)
        cells = ["" if standard is None else f"{standard:.2f}"]
        cells += [f"{values[name][width]:.2f}" if name in values else "" for name in names]
        _, far, name, at = max(
            (abs(math.log(v)) if v else math.inf, v, n, w) for n in SEEN for w, v in values[n].items()
        )
        lines.append(f"| {modality}, {router} | {width} | {' | '.join(cells)} | {far:.2f} ({name}, {at}) |")
    return "\n".join(lines), rows


def grown_by(points: list[Point]) -> dict[str, dict[int, float]]:
    """Growth of all that is seen, at each width above the base; empty where there is none, or no base."""
    widths = {p["width"] for p in points}
    larger = sorted(w for w in widths if w > BASE)
    if BASE not in widths or not larger:
        return {}
    names = [name for name in (*SEEN, "logits") if name in points[0]["after"]]
    return {name: {w: growth(points, name, w) for w in larger} for name in names}


def picture(groups: dict[tuple[str, str], dict[bool, list[Point]]], file: Path) -> None:
    """A panel for each modality and parameterisation, a curve for each router: the stream over the width."""
    panels = []
    for modality in dict.fromkeys(m for m, _ in groups):
        for mup in (False, True):
            curves = []
            for (own, router), both in groups.items():
                points = both.get(mup, [])
                if own == modality and points:
                    widths = sorted({p["width"] for p in points})
                    at = [[p["after"]["stream"] for p in points if p["width"] == w] for w in widths]
                    curves.append(Curve(router, widths, [statistics.geometric_mean(values) for values in at]))
            curves.sort(key=lambda curve: -curve.y[-1])  # legend in the order of the lines' ends
            title = f"{modality}, {'muP, base 128' if mup else 'standard'}"
            panels.append(Panel(title, "width", "rms of the stream", curves))
    draw_panels(panels, file, columns=2)


def grouped(points: list[Point]) -> dict[tuple[str, str], dict[bool, list[Point]]]:
    groups: dict[tuple[str, str], dict[bool, list[Point]]] = {}
    for p in points:
        groups.setdefault((p["modality"], p["router"]), {}).setdefault(p["mup"], []).append(p)
    return groups


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--routers", nargs="*", default=routers(), choices=routers())
    parser.add_argument("--modalities", nargs="*", default=list(MODALITIES), choices=list(MODALITIES))
    parser.add_argument("--rate", type=float, default=4e-3, help="learning rate, at the base width")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument(
        "--seeds", type=int, default=1, help="under muP; of the standard one the first is drawn"
    )
    parser.add_argument(
        "--once", type=int, nargs="*", default=[], help="widths that take the first seed alone"
    )
    parser.add_argument("--heads", type=int, default=0, help="number of heads at all widths; 0: heads of 32")
    parser.add_argument("--kept", action="store_true", help="model.keep_router_logits=true")
    parser.add_argument("--out", type=Path, default=Path("runs/coordinates"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "points.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    todo: list[Point] = [
        {
            "modality": modality, "router": router, "width": width, "mup": mup, "seed": seed, "rate": options.rate,
            "steps": options.steps, "heads": options.heads, "kept": options.kept and mup,
        }
        for width in sorted(options.widths)
        for seed in range(options.seeds)
        for modality in options.modalities
        for router in options.routers
        for mup in (False, True)
        if not seed or (mup and width not in options.once)
    ]  # fmt: skip
    points = []
    for index, point in enumerate(todo):
        found = next((d for d in done if d.items() >= point.items()), None)
        if found is None:
            found = run(point)
            gc.collect()
            with file.open("a") as stream:
                stream.write(json.dumps(found) + "\n")
            where = f"{point['modality']} {point['router']} {point['width']} {'muP' if point['mup'] else 'standard'}"
            print(f"{index + 1} of {len(todo)}: {where}, stream {found['after']['stream']:.3g}", flush=True)
        points.append(found)
    groups = grouped(points)
    text, rows = table(groups)
    (options.out / "coordinates.json").write_text(json.dumps({"points": points, "growth": rows}, indent=1))
    picture(groups, options.out / "coordinates.png")
    print(text)


if __name__ == "__main__":
    main()
