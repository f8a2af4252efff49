"""Every router on one task at equal work, against controls, so that differences are meaningful.

    python -m benchmarks.quality.routers [--task image] [--seeds 5] [--steps 400] [--only race soft]
        [--write docs/results/routers.md]
    python -m benchmarks.quality.routers --task fashion --data /usr/share/datasets/fashion-mnist --out runs/fashion

The tasks are the built-in digits, clips and furniture, and the 60,000 pictures of Fashion-MNIST (arXiv 1708.07747;
Debian's dataset-fashion-mnist).

Work: for each variant, the width of its routed experts (or dense layers) is fitted until the counted multiply-adds of
a forward pass in training equal token choice's within 2 %; those of sampling are reported. Learning rate: for each
variant, the best of --rates at width --base, on seeds and a split (val) that the comparison does not see. If that is
the lowest or the highest, half or twice of it is tried too, up to --beyond times. The variant then trains with it at
--width, under muP. Compared are the averaged weights on test samples, at 16 times each with noise of their own, the
same for all; runs of a seed share data, order and noise.

Statistics are paired by seed: differences to token choice, Student's intervals, p values with Holm's correction over
all variants, and the least difference that 80 of 100 such studies would find. Where a difference is within twice that,
the variant and token choice get seeds up to --most. The study is valid only if a dense model twice as wide beats the
dense one; otherwise no verdict is given. Nothing is ever ranked by its loss.

Each finished run is a line of runs.jsonl in --out, so the same command resumes. After each round it writes table.md
there, and with --write the marked part of that page.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks import options_of
from benchmarks.quality.paired import interval, least_detectable
from benchmarks.quality.router_table import CONTROL, REFERENCE, section, tuned, written
from ditmoe.analysis.probe import make_probe, shown
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.cost import Counts, count
from ditmoe.diffusion import Sampling
from ditmoe.inference import draw
from ditmoe.modality import Modality
from ditmoe.train import make_trainer
from ditmoe.training import Trainer

EXPERTS, WITHIN = 16, 0.02
COMMON = [
    "model=nano", "model.depth=3", "model.moe_layers=null", "model.shared_ratio=1.0", "model.expert_ratio=1.0",
    "model.dense_ratio=3.0", "trainer.precision=fp32", "trainer.ema_decay=0.98",
    "trainer.preview_every=0", "trainer.save_every=0", "trainer.log_every=0", "finish.num=0", "finish.evaluate=false",
]  # fmt: skip
TASKS = {  # name -> its options, number of tokens
    "image": (["modality=image", "trainer.batch_size=32"], 16),
    "fashion": (["modality=image", "trainer.batch_size=32"], 16),
    "video": (["modality=video", "trainer.batch_size=8"], 80),
    "pointcloud": (
        [
            "modality=pointcloud",
            "trainer.batch_size=8",
            "modality.num_points=512",
            "modality.tokens.resolution=16",
        ],
        64,
    ),
}
CONTROLS = "benchmarks.quality.router_controls."
TOKEN, TOP1 = "router.top_k=2", "router.top_k=1"
VARIANTS: dict[str, list[str]] = {  # name -> what it changes
    "dense": ["router=dense"],
    CONTROL: ["router=dense"],
    "dense with convolution": [f"router._target_={CONTROLS}ConvolvedChoice", "router.num_experts=1", TOP1,
                               "router.balance=0"],
    REFERENCE: [],
    "token choice with convolution": [f"router._target_={CONTROLS}ConvolvedChoice"],
    "random choice": [f"router._target_={CONTROLS}RandomChoice", "router.balance=0"],
    "one expert, copied": [f"router._target_={CONTROLS}OneExpert"],
    "without balance loss": ["router.balance=0"],
    "switch": ["router=switch"],
    "loss_free": ["router=loss_free"],
    "expert_choice": ["router=expert_choice"],
    "nucleus": ["router=nucleus"],
    "promoe": ["router=promoe"],
    "batch_pool": ["router=batch_pool"],
    "race": ["router=race"],
    "soft": ["router=soft"],
    "mixture_of_tokens": ["router=mixture_of_tokens", "router.group=8"],
    "sinkhorn": ["router=sinkhorn"],
    "base": ["router=base"],
    "relu": ["router=relu"],
    "timestep": ["router=timestep", "router.boundaries=[500]", f"router.router.num_experts={EXPERTS // 2}"],
    "diff_moe": ["router=diff_moe", "router.rank=16", "router.kernel=3"],
    "time_aware": ["router=time_aware", "router.rank=16"],
}  # fmt: skip
Run = dict[str, Any]


def words(task: str, name: str) -> list[str]:
    """What a command line would say for a variant of a task."""
    own, tokens = TASKS[task]
    replaced = [word for word in VARIANTS[name] if word.startswith("router=")]
    found = [*(replaced or ["router=token_choice"]), *COMMON, *own]
    dense, segments = "router=dense" in replaced, "router=timestep" in replaced
    if not dense and not segments:
        found.append(f"router.num_experts={EXPERTS}")
    if "router=soft" in replaced:
        found.append(f"router.slots={2 * tokens // EXPERTS}")
    return [*found, *(word for word in VARIANTS[name] if word not in replaced)]


@cache
def modality_of(task: str) -> Modality:
    """The data of a task, whose codec is fitted once, and now: what is counted has shapes alone."""
    modality = build.make_modality(composed("train", words(task, "dense")))
    modality.data_facts()
    return modality


def configured(task: str, name: str, width: int, base: int, ratio: float | None = None) -> dict[str, Any]:
    """The configuration of a variant, with the ratio that its layers are to have."""
    config = composed("train", words(task, name))
    config["model"] |= {"hidden_size": width, "num_heads": max(1, width // 32)}
    config["model"]["base_width"] = base if base != width else None
    if ratio is not None:
        config["model"]["dense_ratio" if "router=dense" in VARIANTS[name] else "expert_ratio"] = ratio
    return config


@cache
def fitted(task: str, name: str, width: int) -> dict[str, Any]:
    """The ratio at which a variant works as much as token choice; over that, its work and what autograd keeps.

    Raises:
        ValueError: if no ratio makes it so.
    """
    modality = modality_of(task)
    shape = tuple(modality.sample_shape)

    def counts(ratio: float, name: str = name, training: bool = True) -> Counts:
        config = configured(task, name, width, width, ratio)
        return count(lambda: build.make_model(config, modality).train(training), shape)

    aim = counts(1.0, REFERENCE)
    one, two = (counts(ratio).multiply_adds for ratio in (1.0, 2.0))
    ratio = round((1 + (aim.multiply_adds - one) / (two - one)) * width) / width
    if ratio <= 0 or abs(counts(ratio).multiply_adds / aim.multiply_adds - 1) > WITHIN:
        raise ValueError(
            f"{name} must work as much as {REFERENCE} within {WITHIN:.0%} at some width, got none"
        )
    ratio *= 2 if name == CONTROL else 1
    own, sampling = counts(ratio), counts(ratio, training=False)
    work = [each.multiply_adds / aim.multiply_adds for each in (own, sampling)]
    return {"ratio": ratio, "work": work, "memory": own.activations / aim.activations}


def train(run: Run) -> Run:
    """One run, from its configuration to its losses on held-out samples."""
    task, name = run["task"], run["name"]
    fit = fitted(task, name, run["width"])
    config = configured(task, name, run["width"], run["base"], fit["ratio"])
    config["seed"], config["optimizer"]["lr"] = run["seed"], run["rate"]
    config["trainer"] |= {"steps": run["steps"], "warmup": run["steps"] // 10}
    start = time.process_time()
    with TemporaryDirectory() as folder:
        trainer = make_trainer(config, modality_of(task), Path(folder))
        if not trainer.run():
            sys.exit(130)  # stopped by a signal: a partial training is no result
    seconds = round(time.process_time() - start, 1)
    measured = held_out(trainer, "val" if run["tuning"] else "test")
    parameters = sum(p.numel() for p in trainer.model.parameters())
    told = {"seconds": seconds, "parameters": parameters, **fit}
    drawn = {} if run["tuning"] or not run["draw"] else distance(trainer, run["draw"], run["seed"])
    return {**run, **told, **measured, **drawn}


@torch.no_grad()
def held_out(trainer: Trainer, split: str, samples: int = 128) -> dict[str, Any]:
    """Loss of the averaged weights, in four bins of noise, and what the routers do meanwhile."""
    model = trainer.ema.model
    probe = make_probe(model, trainer.modality, trainer.process, split, samples, 16, 0)
    loss, layers, active = np.zeros((len(probe.x0), probe.bins)), [], []
    for one in shown(probe, trainer.process, 64, trainer.device):
        output, routings = model(one.x, one.t, one.asked)
        loss[one.rows.numpy(), one.number] = one.loss(output).numpy()
        layers.append([routing.counts for routing in routings])
        active += [len(routing.expert) / len(routing.scores) for routing in routings]
    result = {"loss": loss.mean(), "bins": loss.mean(0).reshape(4, -1).mean(1).tolist()}
    if not active:
        return result
    shares = [total / total.sum() for total in (sum(layer) for layer in zip(*layers, strict=True))]
    return result | {
        "largest load": float(np.mean([float(share.max() * len(share)) for share in shares])),
        "unused": sum(int((share < 1e-3 / len(share)).sum()) for share in shares),
        "experts per token": float(np.mean(active)),
    }


def distance(trainer: Trainer, number: int, seed: int) -> dict[str, float]:
    """What the modality measures of as many samples as asked for, drawn with guidance in 25 steps."""
    modality, model = trainer.modality, trainer.ema.model
    reference = modality.reference("test")  # type: ignore[attr-defined]
    asked = model.conditioning.read(torch.as_tensor(reference.labels)[torch.arange(number) % len(reference)])
    scheduler = build.make(trainer.state.carried["config"]["scheduler"])
    x = draw(model, modality, trainer.process, scheduler, Sampling(25, 1.5), asked, seed=seed)
    values = modality.evaluate(modality.samples(x, asked), reference).values  # type: ignore[attr-defined]
    name = next(name for name in ("fd/pixels", "1-nna/cd") if name in values)
    return {name: float(values[name])}


def further_rates(runs: list[Run]) -> dict[str, float]:
    """Of each variant whose best rate is the least or the largest that was tried, half or twice of it."""
    found = {}
    for name, losses in tuned(runs).items():
        best = min(losses, key=losses.__getitem__)
        if best in (min(losses), max(losses)):
            found[name] = best * 2 if best == max(losses) else best / 2
    return found


def close(runs: list[Run]) -> set[str]:
    """Variants whose difference to token choice is within twice the least detectable one."""
    losses: dict[str, dict[int, float]] = {}
    for run in runs:
        if not run["tuning"]:
            losses.setdefault(run["name"], {})[run["seed"]] = run["loss"]
    base, found = losses.get(REFERENCE, {}), set()
    for name, own in losses.items():
        pairs = [own[s] - base[s] for s in own.keys() & base.keys()]
        if name != REFERENCE and len(pairs) > 1:
            least = least_detectable(pairs, len(losses) - 1)
            found |= {name, REFERENCE} if abs(interval(pairs)[0]) < 2 * least else set()
    return found


def planned(options: argparse.Namespace, runs: list[Run]) -> Iterator[list[Run]]:
    """Rounds of runs, one after the other: rates, then seed by seed, then more seeds where it is close."""
    common = {"task": options.task, "steps": options.steps, "base": options.base, "draw": options.draw}
    at_base, seeds = {**common, "width": options.base, "tuning": True}, range(1000, 1000 + options.tuning)
    for seed in seeds:
        for rate in options.rates:
            yield [{**at_base, "seed": seed, "name": name, "rate": rate} for name in options.only]
    for _ in range(options.beyond):
        further = further_rates(runs)
        yield [
            {**at_base, "seed": seed, "name": name, "rate": rate}
            for seed in seeds
            for name, rate in further.items()
        ]
    rates = {name: min(losses, key=losses.__getitem__) for name, losses in tuned(runs).items()}
    for seed in range(options.most):
        names = options.only if seed < options.seeds else [n for n in options.only if n in close(runs)]
        own = {**common, "width": options.width, "seed": seed, "tuning": False}
        yield [{**own, "name": name, "rate": rates[name]} for name in names]


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--task", default="image", choices=list(TASKS))
    parser.add_argument("--data", type=Path, help="a folder, in place of what is built in")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--most", type=int, default=10, help="seeds where it is close")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--base", type=int, default=32, help="width that learning rates are chosen at")
    parser.add_argument("--rates", type=float, nargs="+", default=[8e-3, 16e-3, 32e-3])
    parser.add_argument(
        "--beyond", type=int, default=2, help="further rates where the best is the least or the largest"
    )
    parser.add_argument("--tuning", type=int, default=1, help="seeds that learning rates are chosen with")
    parser.add_argument("--draw", type=int, default=0, help="samples to draw and to measure in each run")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("runs/routers"))
    parser.add_argument("--write", type=Path, help="a page with the marks of this study")
    options = parser.parse_args()
    if options.task == "fashion" and not options.data:
        parser.error("--data must name the folder of Fashion-MNIST's four files")
    if options.data:
        TASKS[options.task][0].append(f"modality.data.root={options.data}")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "runs.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    runs: list[Run] = []
    for todo in planned(options, runs):
        for run in todo:
            found = next((d for d in done if d.items() >= run.items()), None)
            if found is None:
                found = train(run)
                with file.open("a") as stream:
                    stream.write(json.dumps(found) + "\n")
                what = (
                    f"rate {run['rate']:g} at width {run['width']}"
                    if run["tuning"]
                    else f"seed {run['seed']}"
                )
                print(f"{run['name']}, {what}: {found['loss']:.4f}, {found['seconds']:.0f} s", flush=True)
            runs.append(found)
        text = section(runs)
        (options.out / "table.md").write_text(text)
        if options.write:
            options.write.write_text(written(options.write.read_text(), text, options.task))
    print(section(runs))


if __name__ == "__main__":
    main()
