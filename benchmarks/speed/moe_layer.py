"""The MoE layer against its limit and the usual loop: python -m benchmarks.speed.moe_layer [--all] [--profile]

The limit is one dense SwiGLU with the multiply-adds that a token takes in the layer. The loop is that of most public
code: for each expert a mask over all assignments, through which rows are read and written. All are interleaved in one
process, on one CPU thread in processor time, or on a GPU: compare the ratios.

8 experts are DiT-MoE's (width 4 D, two for each token); 64 have about the proportions of DeepSeek-V2-Lite (width 2/3 D,
six for each token). Shared experts have width 2 D. Times include router, balance loss, casts and all gradients.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import options_of
from benchmarks.speed.timing import interleaved, keep_memory, table
from ditmoe.model import initialize_layers
from ditmoe.moe import Context, MoE, TokenChoice
from ditmoe.moe.losses import balance_loss
from ditmoe.moe.routing import count
from ditmoe.nn import FeedForward, Layout

SHAPES = {8: (4.0, 2), 64: (2 / 3, 6)}  # experts: width / D, experts per token
PARTS = {  # parts of the layer by their operations
    "products": ("mm", "addmm", "bmm", "_grouped_mm"),
    "activation": ("silu", "silu_backward", "mul", "sum"),
    "sort": ("sort", "index", "index_add", "cumsum", "ones_like", "repeat_interleave", "floor_divide"),
    "gather": ("index_select",),
    "combine": ("_embedding_bag", "add"),
    "casts and copies": ("copy_", "zero_", "fill_"),
    "router": ("_softmax", "topk", "_softmax_backward_data", "gather", "scatter_add_", "mean", "div"),
}


class MaskLoop(nn.Module):
    """The same layer as most public code writes it; `loss` is that of the last forward pass."""

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, inner: int, shared: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(hidden_size, num_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(hidden_size, inner, "swiglu") for _ in range(num_experts))
        self.shared = FeedForward(hidden_size, shared, "swiglu")
        self.loss = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        scores = self.router(rows).softmax(dim=-1)
        weight, chosen = scores.topk(self.top_k, dim=-1)
        self.loss = balance_loss(count(chosen.flatten(), scores.shape[1]), scores)
        rows, chosen = rows.repeat_interleave(self.top_k, dim=0), chosen.flatten()
        y = torch.empty_like(rows)
        for e, expert in enumerate(self.experts):
            y[chosen == e] = expert(rows[chosen == e]).to(y.dtype)
        y = (y.view(*weight.shape, -1) * weight[..., None]).sum(dim=1)
        return y.view(x.shape) + self.shared(x)


def layers(
    hidden: int, num_experts: int, tokens: int, dtype: str, device: torch.device
) -> dict[str, Callable]:
    """What is compared: functions of whether to go backward as well."""
    ratio, top_k = SHAPES[num_experts]
    inner, shared = round(ratio * hidden), 2 * hidden
    torch.manual_seed(0)
    with device:
        dense = FeedForward(hidden, shared + top_k * inner, "swiglu")
        moe = MoE(TokenChoice(hidden, num_experts, top_k), hidden, inner, shared, "swiglu")
        loop = MaskLoop(hidden, num_experts, top_k, inner, shared)
        initialize_layers(moe)
        x = torch.randn(tokens // 256, 256, hidden)
        gradient = torch.randn_like(x)
        c = torch.zeros(len(x), hidden)
    context = Context(torch.zeros(len(x), device=device), c, c, Layout.even((256,), len(x), x.device), x)

    def with_loss(x: Tensor) -> tuple[Tensor, Tensor]:
        y, routing = moe(x, context)
        return y, routing.losses["balance"].value

    def run(layer: Callable[[Tensor], tuple[Tensor, Tensor]], weights: nn.Module, backward: bool) -> None:
        source = x.detach().requires_grad_(backward)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16")
        with torch.set_grad_enabled(backward), autocast:
            y, loss = layer(source)
        if backward:
            torch.autograd.backward([(y.float() * gradient).sum() + 0.01 * loss])
            weights.zero_grad()

    return {
        "dense, the limit": lambda backward: run(lambda x: (dense(x), torch.zeros(())), dense, backward),
        "ours": lambda backward: run(with_loss, moe, backward),
        "loop with masks": lambda backward: run(lambda x: (loop(x), loop.loss), loop, backward),
    }


def shares(step: Callable[[], None], device: torch.device) -> str:
    """Where the time goes: share of each part of the layer, by the time of its operations."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiler:
        step()
    part_of = {f"aten::{name}": part for part, names in PARTS.items() for name in names}
    spent = dict.fromkeys([*PARTS, "rest"], 0.0)
    for event in profiler.key_averages():
        spent[part_of.get(event.key, "rest")] += (
            event.self_device_time_total if gpu else event.self_cpu_time_total
        )
    total = sum(spent.values())
    return ", ".join(f"{part} {100 * time / total:.1f} %" for part, time in spent.items())


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[384])
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 64], choices=list(SHAPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096])
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--all", action="store_true", help="hidden 384, 768 and 1152, and 4096 and 16384 tokens"
    )
    parser.add_argument("--profile", action="store_true", help="say where the time of the layer goes")
    options = parser.parse_args()
    if options.all:
        options.hidden, options.tokens = [384, 768, 1152], [4096, 16384]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    keep_memory()
    print(
        f"{device}, torch {torch.__version__}, medians of {options.rounds} rounds; x: over dense, and its range"
    )
    for shape in itertools.product(options.hidden, options.experts, options.tokens, options.dtype):
        made = layers(*shape, device)
        for title, backward in (("forward", False), ("forward and backward", True)):
            print("hidden {}, {} experts, {} tokens, {}: ".format(*shape) + title)
            turns = {name: (lambda f=f, b=backward: f(b)) for name, f in made.items()}
            print(
                "\n".join(table(interleaved(turns, options.rounds, device), "dense, the limit")), flush=True
            )
            if options.profile:
                for name in ("dense, the limit", "ours"):
                    print(f"    {name}: {shares(turns[name], device)}")


if __name__ == "__main__":
    main()
