"""Communication of the devices of a mesh in a training step: predicted, and measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ditmoe.cost.flops import Counts
from ditmoe.outside import check_number

BYTES = {"fp32": 4, "bf16": 2}
"""Bytes per number, by precision."""
GATHER, SCATTER, COPIES, TOKENS = "gather weights", "scatter gradients", "sum copies", "send tokens"


@dataclass(frozen=True)
class Spread:
    """The sizes of a mesh, see `ditmoe.parallel.Mesh`."""

    replicate: int = 1
    shard: int = 1
    expert: int = 1

    @property
    def gpus(self) -> int:
        return self.replicate * self.shard * self.expert

    @property
    def parts(self) -> int:
        """Number of shards of weights, gradients, moments and EMA."""
        return self.shard * self.expert

    def reach(self) -> dict[str, int]:
        """Number of neighbouring ranks among which each kind of traffic goes."""
        return {GATHER: self.parts, SCATTER: self.parts, COPIES: self.gpus, TOKENS: self.expert}


def traffic(
    counts: Counts,
    mesh: Spread,
    *,
    precision: str,
    batch_size: int,
    accumulate: int = 1,
    recompute: bool = False,
) -> dict[str, float]:
    """Bytes that each GPU sends in an optimiser step, by kind, for passes of `batch_size` samples on each GPU.

        gather weights     twice per pass, before a block's forward and backward pass, over the parts: in the precision,
                           but for the routers and what is outside the blocks, in float32
        scatter gradients  once per pass, in float32
        sum copies         once per step, of each GPU's part in float32, among the copies
        send tokens        per pass and assignment whose expert is elsewhere: inputs and weight there, results back, and
                           the same for their gradients; inputs and results a second time if they are recomputed

    Of g ranks each sends (g - 1) / g of the whole when they gather or scatter it, twice that when they sum it, and
    (g - 1) / g of its rows when experts are used evenly. Counts of tokens and losses, some kB, are left out.
    """
    low, exact = BYTES[precision], 4
    apart = counts.routed if mesh.expert > 1 else 0
    precise = counts.outside + counts.routers
    dense, experts = counts.trainable - apart, apart / mesh.expert
    rows = counts.assignments * batch_size if mesh.expert > 1 else 0
    row = 2 * counts.width * low + exact
    return {
        GATHER: accumulate
        * 2
        * ((low * (dense - precise) + exact * precise) * ring(mesh.parts) + low * experts * ring(mesh.shard)),
        SCATTER: accumulate * exact * (dense * ring(mesh.parts) + experts * ring(mesh.shard)),
        COPIES: 2 * exact * counts.trainable / mesh.parts * ring(mesh.replicate),
        TOKENS: accumulate * (3 if recompute else 2) * rows * row * ring(mesh.expert),
    }


def ring(size: int) -> float:
    """Fraction of a tensor that each rank sends in an all-gather or reduce-scatter."""
    return (size - 1) / size


@dataclass(frozen=True)
class Machine:
    """Declared properties of the hardware; nothing is measured. ValueError for a number that none can be.

    Attributes:
        flops: operations per second that a GPU achieves in these matrix products.
        per_node: GPUs per node.
        inside, between: bytes per second that a GPU sends within its node, and out of it.
        host: bytes per second that it reads from the host's memory.
    """

    flops: float
    per_node: int
    inside: float
    between: float
    host: float = 2.5e10

    def __post_init__(self) -> None:
        check_number("machine.per_node", self.per_node, 1, whole=True)
        for name in ("flops", "inside", "between", "host"):
            check_number(f"machine.{name}", getattr(self, name), above=0)

    def seconds(self, sent: Mapping[str, float], mesh: Spread) -> dict[str, float]:
        """Seconds for each kind of traffic by itself, through the slowest link on its way."""
        within = {kind: reach <= self.per_node for kind, reach in mesh.reach().items()}
        return {kind: size / (self.inside if within[kind] else self.between) for kind, size in sent.items()}


class Measured(TorchDispatchMode):
    """Counts the bytes that this rank sends in collectives, by kind, under the same rules as `traffic`."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = dict.fromkeys((GATHER, SCATTER, COPIES, TOKENS), 0.0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if name.startswith("c10d._allgather_base_"):
            self.sent[GATHER] += _bytes(args[0]) * ring(_size(args[2]))
        elif name.startswith("c10d._reduce_scatter_base_"):
            self.sent[SCATTER] += _bytes(args[1]) * ring(_size(args[2]))
        elif name.startswith("c10d.allreduce_"):
            self.sent[COPIES] += sum(2 * _bytes(x) * ring(_size(args[1])) for x in args[0])
        elif name.startswith("_c10d_functional.all_to_all_single"):
            group: Any = dist.distributed_c10d._resolve_process_group(args[3])
            elsewhere = sum(args[2]) - args[2][dist.get_rank(group)]
            self.sent[TOKENS] += _bytes(args[0]) * elsewhere / max(1, sum(args[2]))
        return function(*args, **(kwargs or {}))


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _size(group: Any) -> int:
    return dist.ProcessGroup.unbox(group).size()
