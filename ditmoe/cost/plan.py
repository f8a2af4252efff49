"""The cost of a configuration as text: parameters, operations, memory and communication."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ditmoe.config import build
from ditmoe.config.limits import check_shape
from ditmoe.config.plain_values import LARGEST
from ditmoe.cost.communication import BYTES, TOKENS, Machine, Spread, traffic
from ditmoe.cost.flops import Counts, count
from ditmoe.cost.memory import Memory, check_memory_options, moved_in_a_pass, sampling_memory, training_memory
from ditmoe.model import DiTMoE, LowMemory
from ditmoe.outside import check_number


def count_config(
    config: dict[str, Any], check: Callable[[DiTMoE], None] = lambda model: None
) -> tuple[Counts, Sequence[int], int]:
    """Counts, sample shape and number of classes of a configuration.

    Without a modality the samples are the latents of the published image models. The data of a modality is only
    read for its class names, and not at all if `num_classes` is given.

    Args:
        check: called with the model, which has shapes but no memory; an error that it raises ends the counting.
    """
    classes = config["num_classes"]
    if (config.get("modality") or {}).get("_target_"):  # a section that a conditioning added has no class
        modality = build.make_modality(config)
        tokens, shape = modality.tokens, tuple(modality.sample_shape)
        classes = len(modality.classes) if classes is None else classes
    else:
        latents = config["latents"]
        if not isinstance(size := latents["size"], list):
            raise ValueError(f"latents.size must be a list of whole numbers, got {size!r}")
        check_number("latents.channels", latents["channels"], 1, LARGEST, whole=True)
        if not 1 <= len(size) <= 3:
            raise ValueError(f"latents.size must have one to three sizes, got {size!r}")
        shape = (latents["channels"], *size)
        check_shape(shape, math.inf)
        classes = latents["num_classes"] if classes is None else classes
        check_number("num_classes", classes, 0, 2**31, whole=True)

        def tokens(hidden_size: int) -> Any:
            options = {k: v for k, v in latents.items() if k not in ("size", "num_classes")}
            return build.make(options, hidden_size=hidden_size)

    def model() -> DiTMoE:
        model = build.assemble(config, tokens, classes)
        check(model)
        return model

    return count(model, shape), shape, classes


def plan(config: dict[str, Any]) -> list[str]:
    """The lines that `python -m ditmoe.plan` prints."""
    memory = dict(config["memory"])
    check_memory_options(**memory)
    guidance, sampling_batch = memory.pop("guidance"), memory.pop("sampling_batch_size")
    accumulate, recompute = memory.pop("accumulate"), memory["recompute"]
    keep = LowMemory(*(memory.pop(name) for name in ("weights", "offload", "expert_cache")))
    mesh, machine = spread_of(config["mesh"]), Machine(**config["machine"])
    width = BYTES[memory["precision"]]
    counts, shape, classes = count_config(config, lambda model: keep.check_room(model, width))
    training = training_memory(counts, mesh, **memory)
    precision, batch_size = memory["precision"], memory["batch_size"]
    sampling = sampling_memory(
        counts, precision=precision, batch_size=sampling_batch, guidance=guidance, keep=keep
    )
    lines = report(config, counts, shape, classes)
    lines.append(
        f"memory per GPU, training in {precision}, batch {batch_size} on each of {mesh.gpus} "
        f"({mesh.replicate} x {mesh.shard} x {mesh.expert}: copies, parts, experts), estimate"
    )
    lines += table(training)
    if mesh.gpus > 1:
        options = {"precision": precision, "accumulate": accumulate, "recompute": recompute}
        sent = traffic(counts, mesh, batch_size=batch_size, **options)
        lines += step_report(counts, mesh, machine, sent, batch_size * accumulate, recompute)
    lines.append(
        f"memory, sampling {sampling_batch} at once{' with guidance' if guidance else ''} in {precision} (estimate)"
    )
    lines += table(sampling)
    return lines + (offload_report(counts, keep, precision, machine.host) if keep.offload else [])


def offload_report(counts: Counts, keep: LowMemory, precision: str, host: float) -> list[str]:
    """Lines on the cost per step of fetching experts from the host.

    Args:
        host: declared bytes per second from the host to the GPU.
    """
    moved = moved_in_a_pass(counts, keep, precision)
    return [
        "fetched from the host in a step whose tokens choose every expert, and seconds by itself (at the stated rate)",
        f"{_row('experts', moved / 2**30, 'GiB')}{moved / host:>10.3f} s",
    ]


def spread_of(mesh: Mapping[str, Any]) -> Spread:
    """The mesh of a configuration.

    Raises:
        ValueError: unless all three sizes are given and at least 1.
    """
    sizes = {name: mesh[name] for name in ("replicate", "shard", "expert")}
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"mesh.{name} must be a whole number from 1 on, got {size}")
    return Spread(**sizes)


def step_report(
    counts: Counts, mesh: Spread, machine: Machine, sent: Mapping[str, float], samples: int, recompute: bool
) -> list[str]:
    """Lines on the traffic and duration of a step, from the declared properties of the machine.

    A backward pass costs two forward passes, recomputation another one. Gathering and scattering can overlap with the
    products, the exchange of tokens cannot. The two durations are those of full and of no overlap.
    """
    passes = 4 if recompute else 3
    compute = passes * 2 * counts.multiply_adds * samples / machine.flops
    seconds = machine.seconds(sent, mesh)
    tokens = seconds[TOKENS]
    hidden = sum(seconds.values()) - tokens
    rate = samples * mesh.gpus
    lines = [f"sent by each GPU in a step of {rate} samples, and seconds by itself (at the stated rates)"]
    lines += [
        f"{_row(kind, size / 2**30, 'GiB')}{seconds[kind]:>10.3f} s" for kind, size in sent.items() if size
    ]
    lines.append(f"  {'products':<18}{'':>14}{compute:>10.3f} s")
    low, high = max(compute, hidden) + tokens, compute + hidden + tokens
    lines.append(
        f"  step: {low:.3f} s if all but the tokens overlaps with the products, {high:.3f} s if nothing does; "
        f"{rate / low:.0f} .. {rate / high:.0f} samples/s"
    )
    return lines


def report(config: dict[str, Any], counts: Counts, shape: Sequence[int], classes: int) -> list[str]:
    """Lines on the size of the model and the cost of a forward pass."""
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
    """One line for each part, and one for the sum."""
    parts = {**memory.parts, "sum": memory.total}
    return [_row(name, size / 2**30, "GiB") for name, size in parts.items() if size]


def _row(name: str, number: float, unit: str) -> str:
    digits = 2 if number >= 0.01 or not number else 1 - math.floor(math.log10(number))
    return f"  {name:<18}{number:>10.{digits}f} {unit}"
