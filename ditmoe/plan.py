"""python -m ditmoe.plan model=xl router.num_experts=8: parameters, multiply-adds and memory, before any is spent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ditmoe import build, cli
from ditmoe.counting import Counts, count
from ditmoe.model import DiTMoE

BYTES = {"fp32": 4, "bf16": 2}
SHARDINGS = ("none", "optimizer", "gradients", "full")


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU, by what they hold."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def training_memory(
    counts: Counts, *, precision: str, batch_size: int, gpus: int, sharding: str, moments: int, ema: bool
) -> Memory:
    """Memory of a training step on each of `gpus` devices, for W trainable parameters.

        weights      4 W in float32; in bf16 (autocast) 2 W more, the copies that the products read
        gradients    4 W
        moments      4 W each (AdamW keeps 2)
        EMA          4 W
        activations  batch_size x numbers kept per sample x bytes of the precision

    Sharding divides by the number of GPUs: "optimizer" moments and EMA (ZeRO-1), "gradients" these and the
    gradients (ZeRO-2), "full" also the weights (ZeRO-3, FSDP), of which two blocks at a time are whole
    (arXiv 1910.02054). What a kernel needs while it runs, and what the allocator wastes, is not in it.
    """
    _check(precision=precision, batch_size=batch_size, gpus=gpus, sharding=sharding, moments=moments)
    level = SHARDINGS.index(sharding)
    w, bytes_ = counts.trainable, BYTES[precision]
    per_weight = 4 + (bytes_ if bytes_ < 4 else 0)
    weights = float(per_weight * w)
    if level == 3:
        weights = weights / gpus + (0 if gpus == 1 else 2 * per_weight * w / counts.depth)
    return Memory(
        {
            "weights": weights,
            "gradients": 4 * w / (gpus if level >= 2 else 1),
            "moments": 4 * moments * w / (gpus if level >= 1 else 1),
            "EMA": (4 * w if ema else 0) / (gpus if level >= 1 else 1),
            "activations": float(batch_size * counts.activations * bytes_),
        }
    )


def sampling_memory(counts: Counts, *, precision: str, batch_size: int, guidance: bool) -> Memory:
    """Memory of drawing samples on one GPU: all weights in the precision, and the activations of one block.

    Guidance doubles the batch. Nothing is kept for a backward pass, so the block at hand is all there is.
    """
    _check(precision=precision, batch_size=batch_size)
    samples = batch_size * (2 if guidance else 1)
    return Memory(
        {
            "weights": float(BYTES[precision] * counts.trainable),
            "activations": samples * counts.activations * BYTES[precision] / counts.depth,
        }
    )


def _check(**options: Any) -> None:
    for name, allowed in {"precision": list(BYTES), "sharding": list(SHARDINGS)}.items():
        if name in options and options[name] not in allowed:
            raise ValueError(f"memory.{name} must be one of {', '.join(allowed)}, got {options[name]!r}")
    for name, least in {"batch_size": 1, "gpus": 1, "moments": 0}.items():
        if name in options and options[name] < least:
            raise ValueError(f"memory.{name} must be at least {least}, got {options[name]}")


def count_config(config: dict[str, Any]) -> tuple[Counts, Sequence[int], int]:
    """Counts, sample shape and number of classes of a configuration.

    Without a modality the samples are the published image models' latents. The data of a modality is only
    looked at for its class names, and not at all where `num_classes` is given.
    """
    classes = config["num_classes"]
    if config.get("modality"):
        modality = build.make_modality(config)
        tokens, shape = modality.tokens, tuple(modality.sample_shape)
        classes = len(modality.classes) if classes is None else classes
    else:
        latents = config["latents"]
        shape = (latents["channels"], *latents["size"])
        classes = latents["num_classes"] if classes is None else classes

        def tokens(hidden_size: int) -> Any:
            options = {k: v for k, v in latents.items() if k not in ("size", "num_classes")}
            return build.make(options, hidden_size=hidden_size)

    def model() -> DiTMoE:
        router = build.make_router(config["router"])
        width = config["model"]["hidden_size"]
        return build.make(config["model"], tokens=tokens(width), num_classes=classes, router=router)

    return count(model, shape), shape, classes


def plan(config: dict[str, Any]) -> None:
    """The command."""
    memory = dict(config["memory"])
    guidance, sampling_batch = memory.pop("guidance"), memory.pop("sampling_batch_size")
    _check(**memory)
    counts, shape, classes = count_config(config)
    training = training_memory(counts, **memory)
    sampling = sampling_memory(
        counts, precision=memory["precision"], batch_size=sampling_batch, guidance=guidance
    )
    print("\n".join(report(config, counts, shape, classes)))
    print(
        f"memory per GPU, training in {memory['precision']}, batch {memory['batch_size']} on each of "
        f"{memory['gpus']}, sharding {memory['sharding']} (estimate)"
    )
    print("\n".join(table(training)))
    print(f"memory, sampling {sampling_batch} at once{' with guidance' if guidance else ''} (estimate)")
    print("\n".join(table(sampling)))


def report(config: dict[str, Any], counts: Counts, shape: Sequence[int], classes: int) -> list[str]:
    """Lines that say what the model is and what a forward pass costs."""
    model, router = config["model"], config["router"]
    within = router.get("router") or router
    experts = f"{within['num_experts']} experts" if within.get("num_experts") else "dense"
    if "boundaries" in router:
        experts = (
            f"{len(router['boundaries']) + 1} noise segments of {experts.replace('dense', 'one expert')}"
        )
    chosen = f", top {within['top_k']}" if within.get("num_experts") and within.get("top_k") else ""
    sample = " x ".join(map(str, shape))
    return [
        f"{model['depth']} layers, {model['hidden_size']} wide, {model['num_heads']} heads, {experts}{chosen}; "
        f"{counts.tokens} tokens of a sample {sample}, {classes} classes",
        "parameters, as DiT-MoE's paper counts (with the fixed position table, without the QK LayerNorm)",
        *(
            _row(name, number / 1e6, "M")
            for name, number in {
                "total": counts.total,
                "active": counts.active,
                "routed experts": counts.routed,
                "shared experts": counts.shared,
                "trainable": counts.trainable,
            }.items()
        ),
        "multiply-adds of one forward pass of one sample (FLOPs are twice these)",
        _row("all", counts.multiply_adds / 1e9, "G   with QK^T and AV: what DiT prints"),
        _row("minus attention", (counts.multiply_adds - counts.products) / 1e9, "G   what DiT-MoE prints"),
    ]


def table(memory: Memory) -> list[str]:
    """One line per part, and the sum."""
    parts = {**memory.parts, "sum": memory.total}
    return [_row(name, size / 2**30, "GiB") for name, size in parts.items() if size]


def _row(name: str, number: float, unit: str) -> str:
    digits = 2 if number >= 0.01 or not number else 1 - math.floor(math.log10(number))
    return f"  {name:<16}{number:>10.{digits}f} {unit}"


def main() -> None:
    """Entry point."""
    cli.run(plan, "plan")


if __name__ == "__main__":
    main()
