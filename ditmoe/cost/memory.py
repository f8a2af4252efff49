"""What training and sampling need of a GPU's memory, estimated from counts."""

from dataclasses import dataclass
from typing import Any

from ditmoe.cost.communication import FLOATS, Spread
from ditmoe.cost.flops import Counts

BYTES = FLOATS


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU, by what they hold."""

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
        gathered     on one GPU the copies in bf16 that the products read, 2 W; else of two blocks at a time the weights
                     in the precision, and of one the gradient in it and in float32, each expert where it belongs
        activations  batch_size x numbers kept per sample x bytes of the precision; with `recompute` the inputs of all
                     blocks and what one block keeps

    The first four are divided by shard x expert (`ditmoe.parallel.mesh`). What a kernel needs while it runs, and what
    the allocator wastes, is not in it.
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


def sampling_memory(counts: Counts, *, precision: str, batch_size: int, guidance: bool) -> Memory:
    """Memory of drawing samples on one GPU: all weights in the precision, and the activations of one block.

    Guidance doubles the batch. Nothing is kept for a backward pass, so the block at hand is all there is.
    """
    check_memory_options(precision=precision, batch_size=batch_size)
    samples = batch_size * (2 if guidance else 1)
    return Memory(
        {
            "weights": float(BYTES[precision] * counts.trainable),
            "activations": samples * counts.activations * BYTES[precision] / counts.depth,
        }
    )


def check_memory_options(**options: Any) -> None:
    if options["precision"] not in BYTES:
        raise ValueError(f"memory.precision must be one of {', '.join(BYTES)}, got {options['precision']!r}")
    for name, least in {"batch_size": 1, "moments": 0}.items():
        if name in options and options[name] < least:
            raise ValueError(f"memory.{name} must be at least {least}, got {options[name]}")
