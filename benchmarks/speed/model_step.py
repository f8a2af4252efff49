"""A whole training step: python -m benchmarks.speed.model_step [--compile] [--depth 2 --batch 2]

DiT-MoE-S/2 on latents of 4 x 32 x 32, against the same model with the usual loop over masks (see `moe_layer`) and
against a dense model of equal multiply-adds, its limit. A step is the forward pass, the loss with the balance loss, the
backward pass and fused AdamW. All are interleaved in one process, on one CPU thread or on a GPU: compare the ratios.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmarks import options_of
from benchmarks.speed.moe_layer import MaskLoop
from benchmarks.speed.timing import interleaved, keep_memory, table
from ditmoe.model import DiTMoE
from ditmoe.moe import TokenChoice
from modalities.image import LatentTokens

DENSE = "dense, the limit"


def models(hidden: int, depth: int, experts: int, top_k: int) -> dict[str, DiTMoE]:
    """What is compared; the dense one is as wide as what a token meets."""
    make = partial(DiTMoE, LatentTokens(hidden), 1000, hidden, depth, hidden // 64)
    router = partial(TokenChoice, num_experts=experts, top_k=top_k)
    dense = make(dense_ratio=2.0 + 4.0 * top_k, dense_activation="swiglu")
    ours, loop = make(router), make(router)
    for block in loop.blocks:
        block.feed_forward = MaskLoop(hidden, experts, top_k, 4 * hidden, 2 * hidden)
    return {DENSE: dense, "ours": ours, "loop with masks": loop}


def steps(model: DiTMoE, batch: int, dtype: str, compiled: bool, device: torch.device) -> dict[str, Callable]:
    """A training step of a model, and a forward pass without gradients."""
    model.to(device)
    for block in model.blocks:
        nn.init.normal_(block.modulation.linear.weight, std=0.02)  # gates open, as after some training
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    forward = torch.compile(model) if compiled else model
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(batch, 4, 32, 32, generator=generator).to(device) for _ in range(2))
    t = (1000 * torch.rand(batch, generator=generator)).to(device)
    y = torch.randint(1000, (batch,), generator=generator).to(device)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=dtype == "bf16")

    def train() -> None:
        with autocast():
            output, routings = forward(x, t, y)
        losses = [loss.value for routing in routings for loss in routing.losses.values()]
        losses += [m.loss for m in model.modules() if isinstance(m, MaskLoop)]
        ((output.float() - target).square().mean() + 0.01 * sum(losses)).backward()
        optimizer.step()
        optimizer.zero_grad()

    def predict() -> None:
        with torch.no_grad(), autocast():
            forward(x, t, y)

    return {"training step": train, "forward": predict}


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile dense and ours as well, beside eager"
    )
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    keep_memory()
    print(
        f"{device}, torch {torch.__version__}, medians of {options.rounds} rounds; x: over dense, and its range"
    )
    for dtype in options.dtype:
        made = models(options.hidden, options.depth, options.experts, options.top_k)
        variants = {name: steps(m, options.batch, dtype, False, device) for name, m in made.items()}
        if options.compile:
            for name in (DENSE, "ours"):
                variants[f"{name}, compiled"] = steps(made[name], options.batch, dtype, True, device)
        for what in ("training step", "forward"):
            print(f"{what}, hidden {options.hidden}, {options.depth} layers, batch {options.batch}, {dtype}")
            turns = {name: functions[what] for name, functions in variants.items()}
            print("\n".join(table(interleaved(turns, options.rounds, device), DENSE)), flush=True)


if __name__ == "__main__":
    main()
