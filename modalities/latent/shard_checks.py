"""Whether a file holds latents and what they are, as `prepare` writes them; by its header, as far as that says it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import LazyTensor, in_memory
from ditmoe.conditioning import TEXT, Condition
from ditmoe.conditioning.condition import LABEL, NULL
from ditmoe.outside import printable

ASKED = "asked."
"""What the names of a condition's tensors begin with in a shard."""
FLOATS = ("F32", "F16", "BF16")
"""Types of latents, as safetensors calls them."""
OTHERS = {
    f"{ASKED}{LABEL}": ("I64", 1, "(n,) whole numbers"),
    f"{ASKED}{NULL}": ("BOOL", 1, "(n,) truth values"),
    f"{ASKED}{TEXT}": ("U8", 2, "(n, width) letters"),
}
"""Type, number of axes, and words for the error, of what a condition may hold."""


def check_shard(shard: Any, place: Path, first: Any | None) -> int:
    """How many latents a shard holds: (n, V, L, *cells) numbers, and as many rows of each tensor of a condition.

    Args:
        shard: as safetensors opens it.
        place: its file, for the error.
        first: the shard whose latents these must be like; None if there is none.

    Raises:
        ValueError: one line, if it holds something else.
    """
    about = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118  (no mapping)
    shapes = {name: list(of.get_shape()) for name, of in about.items()}
    sizes = {name: shape[0] if shape else "one number" for name, shape in shapes.items()}
    if "latents" not in sizes or len({*sizes.values()}) > 1 or not shapes["latents"]:
        raise ValueError(
            f"{printable(place)} is damaged: it must hold as many of everything as of latents, got "
            f"{printable(sizes)[:200]}"
        )
    if (num := shapes["latents"][0]) == 0:
        return 0
    shape, kind = shapes["latents"], about["latents"].get_dtype()
    if len(shape) < 4 or 0 in shape or kind not in FLOATS:
        raise _other(
            place,
            "latents",
            "(n, views, channels, *cells) numbers in float32, float16 or bfloat16",
            kind,
            shape,
        )
    if first is not None and shape[1:] != (like := list(first.get_slice("latents").get_shape())[1:]):
        raise _other(place, "latents", f"(n, {str(like)[1:-1]}) numbers, as the first file", kind, shape)
    for name, (asked, axes, words) in OTHERS.items():
        if name in about and (about[name].get_dtype() != asked or len(shapes[name]) != axes):
            raise _other(place, name, f"{words} in {asked}", about[name].get_dtype(), shapes[name])
    return num


def asked_of(shard: Mapping[str, LazyTensor], classes: int) -> Condition:
    """What the samples of a shard that was checked are; the label of no class is the last.

    Raises:
        ValueError: one line, if it does not say it.
    """
    place = shard["latents"].file
    tensors = {name.removeprefix(ASKED): in_memory(x) for name, x in shard.items() if name.startswith(ASKED)}
    try:
        asked = Condition.of_tensors(tensors)
    except ValueError as error:
        raise ValueError(f"{printable(place)} is damaged: {error}") from error
    if (labels := asked.values.get(LABEL)) is not None:
        low, high = map(int, labels.aminmax())
        if low < 0 or high > classes:
            raise ValueError(
                f"{printable(place)} is damaged: its labels must be whole numbers up to {classes}, got {low} to {high}"
            )
    return asked


def _other(place: Path, name: str, right: str, kind: str, shape: list[int]) -> ValueError:
    return ValueError(f"{printable(place)} is damaged: its {name} must be {right}, got {kind} of {shape}")
