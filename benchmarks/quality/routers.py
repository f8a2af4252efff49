"""Every router on one small real task.

    python -m benchmarks.quality.routers [--seeds 3] [--steps 1000] [--only race soft]

Trains each router at equal active multiply-adds in the feed-forward layers on the built-in furniture, 512 points a
shape: same data in the same order, same noise, same seeds. Each finished run is a line of runs.jsonl in --out, so
that the command can be stopped and goes on; at the end it prints the table. Held-out loss: averaged weights, the 38
shapes of val and test, fixed noise at 16 times. Intervals are of 95 %, Student's over the seeds; the difference to
token choice is taken seed by seed. Time per step: --time measures all in turns, in one process.
"""

import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from benchmarks import options_of
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.diffusion import Sampling
from ditmoe.inference import draw
from ditmoe.modality import Samples
from ditmoe.train import keep_freed_memory, make_trainer
from ditmoe.training import Trainer

TASK = [
    "modality=pointcloud", "modality.num_points=512", "model=nano", "model.depth=3", "model.moe_layers=null",
    "model.shared_ratio=1.0", "model.expert_ratio=1.0", "model.dense_ratio=3.0", "trainer.precision=fp32",
    "modality.evaluation.emd_points=64",
    "trainer.warmup=100", "trainer.preview_every=0", "trainer.save_every=0", "trainer.log_every=500",
]  # fmt: skip
VARIANTS = {  # name -> what it changes; 3 D of feed-forward width are active everywhere
    "dense": ["router=dense"],
    "token_choice": [],
    "without shared experts": ["model.shared_ratio=0", "model.expert_ratio=1.5"],
    "without balance loss": ["router.balance=0"],
    "without either": ["model.shared_ratio=0", "model.expert_ratio=1.5", "router.balance=0"],
    "switch": ["router=switch", "model.expert_ratio=2.0"],
    "loss_free": ["router=loss_free"],
    "expert_choice": ["router=expert_choice"],
    "batch_pool": ["router=batch_pool"],
    "race": ["router=race"],
    "race, no regularisation": ["router=race", "router.regularization=0"],
    "soft": ["router=soft"],
    "sinkhorn": ["router=sinkhorn"],
    "base": ["router=base"],
    "relu": ["router=relu"],
    "timestep": ["router=timestep", "router.boundaries=[500]", "router.router.num_experts=4"],
    "time_aware": ["router=time_aware", "router.rank=16"],
    "diff_moe": ["router=diff_moe", "router.rank=16"],
    "nucleus": ["router=nucleus"],
    "promoe": ["router=promoe", "model.expert_ratio=2.0"],
    "mixture_of_tokens": ["router=mixture_of_tokens"],
}


def make(name: str, seed: int, steps: int, folder: Path) -> Trainer:
    """A trainer of one variant."""
    overrides = [*TASK, f"seed={seed}", f"trainer.steps={steps}", *VARIANTS[name]]
    config = composed("train", overrides)
    return make_trainer(config, build.make_modality(config), folder)  # type: ignore[arg-type]


def held_out(trainer: Trainer) -> Samples:
    """Val and test together."""
    parts = [trainer.modality.reference(split) for split in ("val", "test")]
    return Samples(np.concatenate([p.data for p in parts]), np.concatenate([p.labels for p in parts]))


@torch.no_grad()
def held_out_loss(trainer: Trainer, samples: Samples) -> dict[str, float]:
    """Mean squared error of the averaged weights, and what its routers do meanwhile."""
    data_facts = trainer.modality.data_facts()
    x = torch.from_numpy((samples.data - np.array(data_facts["mean"])) / data_facts["scale"]).float()
    y = torch.from_numpy(samples.labels)
    model, generator = trainer.ema.model, torch.Generator().manual_seed(0)
    losses, counts, active = [], [], []
    for t in torch.linspace(20, 980, 16):
        noise, times = torch.randn(x.shape, generator=generator), t.expand(len(x))
        output, routings = model(trainer.process.corrupt(x, noise, times), times, y)
        losses.append((output - trainer.process.target(x, noise, times)).square().mean().item())
        counts.append([r.counts for r in routings])
        active += [len(r.expert) / len(r.scores) for r in routings]
    if not counts[0]:
        return {"loss": statistics.mean(losses)}
    shares = [load / load.sum() for load in (sum(layer) for layer in zip(*counts, strict=True))]
    return {
        "loss": statistics.mean(losses),
        "largest load": statistics.mean(float(share.max() * len(share)) for share in shares),
        "unused": sum(int((share < 1e-3 / len(share)).sum()) for share in shares),
        "experts per token": statistics.mean(active),
    }


def run(name: str, seed: int, steps: int) -> dict[str, Any]:
    """Train, and measure."""
    with TemporaryDirectory() as folder:
        trainer = make(name, seed, steps, Path(folder))
        start = time.perf_counter()
        trainer.run()
        seconds = time.perf_counter() - start
    reference = held_out(trainer)
    result = held_out_loss(trainer, reference)
    asked = trainer.model.conditioning.read(torch.from_numpy(reference.labels))
    scheduler = build.make(trainer.state.carried["config"]["scheduler"])
    model, modality = trainer.ema.model, trainer.modality
    x = draw(model, modality, trainer.process, scheduler, Sampling(25, 1.5), asked, seed=seed)
    values = modality.evaluate(modality.samples(x, asked), reference).values
    parameters = sum(p.numel() for p in model.parameters())
    metrics = {"1-nna": values["1-nna/cd"], "mmd": values["mmd/cd"]}
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "seconds": seconds,
        "parameters": parameters,
        **result,
        **metrics,
    }


def time_steps(rounds: int) -> dict[str, list[float]]:
    """Processor seconds of a training step of every variant, in turns."""
    with TemporaryDirectory() as folder:
        trainers = {name: make(name, 0, 10_000, Path(folder)) for name in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(rounds + 3):
        for name in list(VARIANTS)[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            trainers[name]._train_step()
            trainers[name].step += 1
            if turn >= 3:
                seconds[name].append(time.process_time() - start)
    return seconds


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval."""
    n = len(values)
    half = student.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5 if n > 1 else float("nan")
    return statistics.mean(values), half


def table(results: list[dict[str, Any]], seconds: dict[str, list[float]]) -> str:
    """The results as Markdown, best held-out loss first."""
    runs = {name: {r["seed"]: r for r in results if r["name"] == name} for name in VARIANTS}
    base = runs["token_choice"]
    lines = [
        "| router | held-out loss | against token_choice | 1-NNA-CD | MMD-CD x1000 | largest load | unused | "
        "experts per token | parameters | time per step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]

    def mean(own: dict[int, dict[str, Any]], key: str, digits: int) -> str:
        values = [r[key] for r in own.values() if key in r]
        return f"{statistics.mean(values):.{digits}f}" if values else ""

    for name, own in sorted(
        runs.items(), key=lambda item: interval([r["loss"] for r in item[1].values()] or [9])[0]
    ):
        if not own:
            continue
        loss, half = interval([r["loss"] for r in own.values()])
        difference, width = interval([own[s]["loss"] - base[s]["loss"] for s in own if s in base] or [0.0])
        nna, nna_half = interval([r["1-nna"] for r in own.values()])
        versus = "" if name == "token_choice" else f"{difference:+.4f} ± {width:.4f}"
        ratio = ""
        if seconds:
            pairs = zip(seconds[name], seconds["dense"], strict=True)
            ratio = f"{statistics.median(a / b for a, b in pairs):.2f}"
        cells = [
            name, f"{loss:.4f} ± {half:.4f}", versus, f"{nna:.2f} ± {nna_half:.2f}",
            f"{1e3 * statistics.mean(r['mmd'] for r in own.values()):.1f}", mean(own, "largest load", 2),
            mean(own, "unused", 1), mean(own, "experts per token", 2),
            f"{next(iter(own.values()))['parameters'] / 1e6:.2f} M", ratio,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--time", type=int, default=0, metavar="ROUNDS", help="measure time per step as well")
    parser.add_argument("--out", type=Path, default=Path("runs/routers"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "runs.jsonl"
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    results = [r for r in results if r["steps"] == options.steps]
    done = {(r["name"], r["seed"]) for r in results}
    todo = [(n, s) for s in range(options.seeds) for n in options.only if (n, s) not in done]
    for index, (name, seed) in enumerate(todo):
        print(f"== {index + 1} of {len(todo)}: {name}, seed {seed}", flush=True)
        results.append(run(name, seed, options.steps))
        with file.open("a") as stream:
            stream.write(json.dumps(results[-1]) + "\n")
    print(table(results, time_steps(options.time) if options.time else {}))


if __name__ == "__main__":
    main()
