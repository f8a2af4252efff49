"""LoRA files with the names of diffusers and peft, which can therefore read those of linear layers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ditmoe.checkpoint import in_memory, replacing
from ditmoe.checkpoint.lazy_tensors import LazyTensor, open_file
from ditmoe.nn.lora import DOWN, MOST_RANK, UP, State
from ditmoe.outside import is_regular, printable
from ditmoe.pipelines.trusted_folder import LORA

PREFIX = "transformer.net."


def file_state(added: Mapping[str, tuple[Any, Any]], scale: float = 1.0) -> dict[str, Tensor]:
    """A and B by their names in a file, with the scale multiplied into B, since readers assume alpha = r by default.

    A matrix of a linear layer is named `transformer.net.<layer>.lora_A.weight`, as usual. For stacked experts there is
    no convention; they are named `transformer.net.<parameter>.lora_A`, with experts as the first axis.
    """
    state = {}
    for name, pair in added.items():
        for kind, value, factor in zip((DOWN, UP), pair, (1.0, scale), strict=True):
            tensor = in_memory(value).detach().cpu() * factor
            layer, _, last = name.rpartition(".")
            place = f"{layer}.{kind}.weight" if last == "weight" and tensor.ndim == 2 else f"{name}.{kind}"
            state[PREFIX + place] = tensor.contiguous()
    return state


def named(state: Mapping[str, Any]) -> State:
    """A and B by parameter name, from the names of a file.

    Raises:
        ValueError: with one line, for a name that is not one of LoRA, a missing A or B, or an invalid value.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name = str(key).removeprefix("transformer.").removeprefix("net.")
        place, _, last = name.removesuffix(".weight").rpartition(".")
        if last not in (DOWN, UP):
            raise ValueError(
                f"a LoRA file must hold nothing but {DOWN} and {UP} of weights, got {printable(key)}"
            )
        pair = found.setdefault(f"{place}.weight" if name.endswith(".weight") else place, {})
        if last in pair:
            raise ValueError(f"LoRA of {printable(place)} must have one {last}, got two")
        pair[last] = in_memory(value) if isinstance(value, LazyTensor | str) else value
    for name, pair in found.items():
        if len(pair) < 2:
            raise ValueError(f"LoRA of {printable(name)} must have both {DOWN} and {UP}")
        for kind, value in pair.items():
            _check(f"{kind} of {printable(name)}", value, -2 if kind == DOWN else -1)
    if not found:
        raise ValueError("a LoRA file must hold at least one weight, got none")
    return {name: (pair[DOWN], pair[UP]) for name, pair in found.items()}


def _check(what: str, value: Any, rank: int) -> None:
    """Check that a value is a matrix, or a stack of matrices, of finite numbers and small rank, stored completely.

    Raises:
        ValueError: with one line, otherwise.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{what} must be a plain tensor of floating-point numbers, got {kind}")
    if value.ndim < 2 or not 1 <= value.shape[rank] <= MOST_RANK:
        raise ValueError(
            f"{what} must have a rank between 1 and {MOST_RANK}, got the shape {tuple(value.shape)}"
        )
    if value.is_meta or value.nbytes > value.untyped_storage().nbytes():  # an expanded view can have any size
        raise ValueError(f"{what} must store each of its numbers, got a view of {tuple(value.shape)}")
    if not value.detach().float().isfinite().all():
        raise ValueError(f"{what} must be finite numbers, got NaN or infinity")


def read(place: str | Path | Mapping[str, Tensor], weight_name: str | None = None) -> State:
    """Read LoRA weights.

    Args:
        place: a safetensors file, a folder, or a dictionary of tensors.
        weight_name: of the file in the folder; None: `LORA`, diffusers' default.

    Raises:
        FileNotFoundError, ValueError: with a message of one line.
    """
    if isinstance(place, Mapping):
        return named(place)
    if not isinstance(place, str | Path):
        raise ValueError(
            f"LoRA must be a file, a folder or a dictionary of tensors, got {type(place).__name__}"
        )
    file = Path(place) / (weight_name or LORA) if Path(place).is_dir() else Path(place)
    if not is_regular(file):
        raise FileNotFoundError(
            f"{file} must be a LoRA file (safetensors), or a folder with {weight_name or LORA}"
        )
    if file.suffix != ".safetensors":
        raise ValueError(f"{file} could hold code, refused: LoRA must be safetensors")
    return named(open_file(file))


def write(folder: str | Path, state: Mapping[str, Tensor], weight_name: str | None = None) -> Path:
    """Write a file completely or not at all; returns its path."""
    file = Path(folder) / (weight_name or LORA)
    with replacing(file) as stream:
        stream.write(save({name: value.to(torch.float32) for name, value in state.items()}, {"format": "pt"}))
    return file
