"""Cost of samples at their own sizes: python -m benchmarks.speed.native [--width 128] [--rounds 5]

Training steps of a model of six blocks, three of them with experts (the size of nano), rotary positions, one CPU
thread, processor seconds, interleaved in one process: compare the ratios.

1. Thirteen pictures of 16 to 256 tokens, 1,108 in all: on one row; padded to the largest, as one batch; one by one.
2. Samples of one size: as a batch, and packed on one row as if their sizes differed.
3. Clips of 8 x 16 x 16 tokens: full attention; attention alternating within frames and along time; shifted windows of
   4 x 8 x 8, also on a packed row with a second clip of another shape, against full attention there.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks import options_of
from benchmarks.speed.timing import interleaved, keep_memory, table
from ditmoe import DiTMoE
from ditmoe.moe import TokenChoice
from modalities.image import LatentTokens
from modalities.video import SpacetimeTokens

PICTURES = [(16, 16), (8, 16), (16, 8), (12, 12), (6, 16), (4, 8), (16, 4), (8, 8), (4, 4), (12, 8)]
PICTURES += [(8, 4), (6, 6), (4, 4)]  # tokens along each axis
CLIP, OTHER, WINDOW = (8, 16, 16), (4, 12, 20), (4, 8, 8)


def model(tokens: LatentTokens | SpacetimeTokens, width: int, **attention: object) -> DiTMoE:
    """A new one."""
    torch.manual_seed(0)
    router = partial(TokenChoice, num_experts=8, top_k=2)
    return DiTMoE(
        tokens, 10, width, 6, width // 32, router, moe_layers=[3, 4, 5], expert_ratio=0.5, dense_ratio=3.0,
        dense_activation="swiglu", rope=True, **attention,
    )  # fmt: skip


def step(net: DiTMoE, *batches: Sequence[torch.Tensor], packed: bool = False) -> Callable[[], None]:
    """A training step on samples (C, ...), on one row or as a batch of one size, or on several such after another."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        for samples in batches:
            t, y = torch.linspace(50, 950, len(samples)), torch.zeros(len(samples), dtype=torch.long)
            if packed:
                rows, layout = net.tokens.pack(samples)
                output = net(rows[None], t, y, layout)[0]
            else:
                output = net(torch.stack(list(samples)), t, y)[0]
            output.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def pictures(width: int) -> dict[str, Callable[[], object]]:
    """The first comparison."""
    net = model(LatentTokens(width), width)
    samples = [torch.randn(4, 2 * h, 2 * w) for h, w in PICTURES]
    largest = [torch.randn(4, 2 * max(h for h, _ in PICTURES), 2 * max(w for _, w in PICTURES))] * len(
        PICTURES
    )
    return {
        "packed": step(net, samples, packed=True),
        "padded to the largest": step(net, largest),
        "one by one": step(net, *([sample] for sample in samples)),
    }


def one_size(width: int) -> dict[str, Callable[[], object]]:
    """The second."""
    net, samples = model(LatentTokens(width), width), [torch.randn(4, 16, 16) for _ in range(16)]
    return {"a batch": step(net, samples), "packed": step(net, samples, packed=True)}


def windows(width: int) -> dict[str, Callable[[], object]]:
    """The third."""
    make = partial(SpacetimeTokens, width, 4)
    nets = {
        "within windows": model(make(), width, attention="window", window=WINDOW),
        "full": model(make(), width),
        "frames and time in turns": model(make(), width, attention="factorised"),
    }
    clip, other = (torch.randn(4, t, 2 * h, 2 * w) for t, h, w in (CLIP, OTHER))
    steps: dict[str, Callable[[], object]] = {n: step(net, [clip]) for n, net in nets.items()}
    for name in ("within windows", "full"):
        steps[f"{name}, packed with another"] = step(nets[name], [clip, other], packed=True)
    return steps


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    print(f"torch {torch.__version__}, one thread, width {options.width}, medians of {options.rounds} rounds")
    for make in (pictures, one_size, windows):
        variants = make(options.width)
        seconds = interleaved(variants, options.rounds, torch.device("cpu"))
        print(make.__name__, *table(seconds, next(iter(variants))), sep="\n", flush=True)


if __name__ == "__main__":
    main()
