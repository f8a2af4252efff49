"""Parts of `benchmarks.gpu`: python -m benchmarks.gpu_parts {steps,tokens,data,sampling,determinism}

- steps: training step and forward pass of DiT-MoE, against a dense model of equal multiply-adds and the usual loop over
  masks; eager and compiled; with peak memory and the share of the card's peak (MFU, from the dense model's
  multiply-adds, where the card is known).
- tokens: a training step on clouds, with all and with occupied patches, and on pictures, as a batch and packed.
- data: how long a step waits for its batch.
- sampling: eager and compiled.
- determinism: a step with and without it.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import options_of
from benchmarks.speed.model_step import DENSE, models, steps
from benchmarks.speed.timing import interleaved, table
from ditmoe.conditioning import Condition
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.diffusion import FlowMatching, denoise, make_scheduler
from ditmoe.diffusion.schedulers import FlowAncestralScheduler
from ditmoe.outside import device as own_device
from ditmoe.train import make_trainer

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bfloat16 operations per second, by the vendors' sheets."""


def peak() -> float | None:
    """Of this card; None where it is not known."""
    if not torch.cuda.is_available():
        return None
    return next((p for name, p in PEAK.items() if name in torch.cuda.get_device_name()), None)


def time_steps(options: Any) -> None:
    """Steps of one size of a model, all variants in turns; compiled ones last, they may not get that far."""
    device, gpu = own_device(), torch.cuda.is_available()
    made = models(options.hidden, options.depth, 8, 2)
    variants = {name: steps(m, options.batch, "bf16", False, device) for name, m in made.items()}
    with FlopCounterMode(display=False) as counter:
        variants[DENSE]["training step"]()
    flops = counter.get_total_flops()

    def measure(names: list[str]) -> None:
        for what in ("training step", "forward"):
            print(f"{what}, hidden {options.hidden}, {options.depth} layers, batch {options.batch}, bf16")
            turns = {name: variants[name][what] for name in names}
            seconds = interleaved(turns, options.rounds, device)
            print("\n".join(table(seconds, DENSE)), flush=True)
            if what == "training step" and (best := peak()):
                for name, values in seconds.items():
                    print(f"  {name:30s}MFU {100 * flops / min(values) / best:5.1f} %")
        for name in names:
            if gpu:
                torch.cuda.reset_peak_memory_stats()
                variants[name]["training step"]()
                print(
                    f"  {name:30s}peak {torch.cuda.max_memory_allocated() / 2**30:6.2f} GiB (all models there)"
                )

    measure(list(variants))
    for name in (DENSE, "ours"):
        variants[f"{name}, compiled"] = steps(made[name], options.batch, "bf16", True, device)
    measure([DENSE, f"{DENSE}, compiled", "ours, compiled"])


def trainer_of(folder: str, *words: str) -> Any:
    """A trainer on built-in data."""
    config = composed("train", [*words, "trainer.precision=bf16"])
    return make_trainer(config, build.make_modality(config), Path(folder))


def sizes(options: Any) -> list[str]:
    """Words for the size of a model."""
    heads = max(1, options.hidden // 64)
    model = [
        f"model.hidden_size={options.hidden}",
        f"model.depth={options.depth}",
        f"model.num_heads={heads}",
    ]
    return [*model, "model.moe_layers=null", f"trainer.batch_size={options.batch}"]


def stepping(trainer: Any) -> Callable[[], None]:
    """One step after the other."""

    def step() -> None:
        trainer._train_step()
        trainer.step += 1

    return step


def time_tokens(options: Any) -> None:
    """Layouts of tokens, in turns."""
    kinds = {
        "clouds, all patches": ["modality=pointcloud"],
        "clouds, occupied": ["modality=pointcloud", "modality.tokens.kept=occupied"],
        "pictures, a batch": ["modality=image"],
        "pictures, packed": ["modality=image", "modality.native=true"],
    }
    with TemporaryDirectory() as folder:
        turns = {name: stepping(trainer_of(folder, *words, *sizes(options))) for name, words in kinds.items()}
        print("\n".join(table(interleaved(turns, options.rounds, own_device()), "clouds, all patches")))


def time_data(options: Any) -> None:
    """What a batch costs on the host, beside the step."""
    with TemporaryDirectory() as folder:
        for kind in ("pointcloud", "image"):
            trainer = trainer_of(folder, f"modality={kind}", *sizes(options))
            whole = interleaved({kind: stepping(trainer)}, options.rounds, own_device())[kind]
            start = time.perf_counter()
            for index in range(options.rounds):
                trainer.batches(index)
            each = (time.perf_counter() - start) / options.rounds
            print(
                f"{kind}: a step {1e3 * min(whole):.1f} ms, of which its batch takes {1e3 * each:.1f} ms of the host"
            )


def time_sampling(options: Any) -> None:
    """50 steps with guidance, eager and compiled."""
    device = own_device()
    model = models(options.hidden, options.depth, 8, 2)["ours"].to(device).eval()
    process = FlowMatching()
    noise = torch.randn(options.batch, 4, 32, 32).to(device)
    asked = Condition.of_labels(torch.zeros(options.batch, dtype=torch.long), 1000).to(device)
    count = 50 if device.type != "cpu" else 2

    def draw(called: Any) -> None:
        generators = [torch.Generator().manual_seed(i) for i in range(options.batch)]
        with torch.autocast(device.type, torch.bfloat16):
            how = {"steps": count, "guidance": 1.5, "generators": generators}
            denoise(called, process, make_scheduler(FlowAncestralScheduler, process), noise, asked, **how)

    compiled = torch.compile(model)
    compiled.tokens = model.tokens
    turns = {"eager": partial(draw, model)}
    print("\n".join(table(interleaved(turns, options.rounds, device), "eager")), flush=True)
    turns["compiled"] = partial(draw, compiled)
    print("\n".join(table(interleaved(turns, options.rounds, device), "eager")))


def time_determinism(options: Any) -> None:
    """A step as it is, and one that repeats to the bit; one after the other, for the switch cannot be turned back."""
    for deterministic in ("false", "true"):
        words = ["modality=pointcloud", f"trainer.deterministic={deterministic}", *sizes(options)]
        with TemporaryDirectory() as folder:
            trainer = trainer_of(folder, *words)
            seconds = interleaved({"step": stepping(trainer)}, options.rounds, own_device())["step"]
        print(f"trainer.deterministic={deterministic}: {1e3 * min(seconds):.1f} ms")


PARTS = {
    "steps": time_steps,
    "tokens": time_tokens,
    "data": time_data,
    "sampling": time_sampling,
    "determinism": time_determinism,
}


def main() -> None:
    """One part."""
    parser = options_of(__doc__)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    PARTS[options.part](options)


if __name__ == "__main__":
    main()
