"""Estimates of the GPU memory for training and sampling, from counts."""

from dataclasses import dataclass
from typing import Any

from ditmoe.cost.communication import BYTES, Spread
from ditmoe.cost.flops import Counts
from ditmoe.model import LowMemory
from ditmoe.nn.quantized import FORMATS
from ditmoe.outside import check_number

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU, by purpose."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def training_memory(
    counts: Counts,
    mesh: Spread,
    *,
    precision: str,
    batch_size: int,
    moments: int,
    ema: bool,
    recompute: bool = False,
) -> Memory:
    """Memory of a training step on each GPU of a mesh, for W trainable parameters.

        weights      4 W in float32
        gradients    4 W
        moments      4 W each (AdamW keeps 2)
        EMA          4 W
        gathered     on one GPU the bf16 copies of all weights for the products, 2 W; on several the weights of two
                     blocks in the precision, and the gradient of one in it and in float32, with E / expert experts
        activations  batch_size x numbers kept per sample x bytes of the precision; with `recompute` the inputs of all
                     blocks and what one block keeps

    The first four are divided by shard x expert (`ditmoe.parallel.mesh`). Workspace of kernels and overhead of the
    allocator are not included.
    """
    check_memory_options(precision=precision, batch_size=batch_size, moments=moments)
    w, low = counts.trainable, BYTES[precision]
    parts = {"weights": 4 * w, "gradients": 4 * w, "moments": 4 * moments * w, "EMA": 4 * w if ema else 0}
    held = {name: size / mesh.parts for name, size in parts.items()}
    block = (w - counts.outside - counts.routed + counts.routed / mesh.expert) / counts.depth
    one_gpu = low * w if low < 4 else 0
    kept = float(counts.activations)
    if recompute:
        kept = counts.depth * counts.tokens * counts.width + counts.activations / counts.depth
    gathered = one_gpu if mesh.gpus == 1 else (3 * low + 4) * block
    return Memory({**held, "gathered": float(gathered), "activations": batch_size * kept * low})


def sampling_memory(
    counts: Counts, *, precision: str, batch_size: int, guidance: bool, keep: LowMemory | None = None
) -> Memory:
    """Memory of sampling on one GPU: all weights, and the activations of one block.

    Guidance doubles the batch. Nothing is kept for a backward pass, so only the activations of the current block are in
    memory.

        weights, experts   in the precision; those of blocks in the format of `keep`: 2 bytes (bf16) or 1 (int8)
        experts            if they are offloaded, at most the size of the cache
        unpacked           int8 weights converted to the precision: the experts of one layer, or one expert if they are
                           offloaded
    """
    check_memory_options(precision=precision, batch_size=batch_size)
    low, keep = BYTES[precision], keep or LowMemory()
    samples = batch_size * (2 if guidance else 1)
    each = low if keep.weights is None else FORMATS[keep.weights]
    outside = counts.outside + counts.routers
    parts: dict[str, float] = {"weights": low * counts.trainable}
    if keep.weights or keep.offload:
        within = counts.trainable - outside - counts.routed
        parts = {"weights": low * outside + each * within, "experts": each * counts.routed}
    if keep.offload:
        parts["experts"] = min(parts["experts"], keep.expert_cache * GIB)
    if each < low:
        parts["unpacked"] = (
            low * counts.routed / max(1, counts.experts if keep.offload else counts.moe_layers)
        )
    parts["activations"] = samples * counts.activations * low / counts.depth
    return Memory({name: float(size) for name, size in parts.items()})


def moved_in_a_pass(counts: Counts, keep: LowMemory, precision: str) -> float:
    """Bytes of offloaded experts that a pass fetches from the host if its tokens choose all experts.

    The tokens of a batch nearly do. If C of the E experts of a layer fit into the cache, at most E - C + 1 are fetched,
    and none if all fit (`ditmoe.moe.expert_memory`).
    """
    if not counts.experts:
        return 0.0
    each = (
        (BYTES[precision] if keep.weights is None else FORMATS[keep.weights]) * counts.routed / counts.experts
    )
    fit = int(keep.expert_cache * GIB / counts.moe_layers / each)
    number = counts.experts / counts.moe_layers
    return 0.0 if fit >= number else each * counts.moe_layers * (number - max(0, fit - 1))


def check_memory_options(**options: Any) -> None:
    """Check the options of `plan`'s section memory, as far as they are given; ValueError in one line."""
    if (precision := options["precision"]) not in [*BYTES]:
        raise ValueError(f"memory.precision must be one of {', '.join(BYTES)}, got {precision!r}")
    for name, least in {"batch_size": 1, "moments": 0, "sampling_batch_size": 1, "accumulate": 1}.items():
        if name in options:
            check_number(f"memory.{name}", options[name], least, whole=True)
