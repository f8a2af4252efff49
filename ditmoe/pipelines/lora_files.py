"""Files of LoRA: names as diffusers and peft have them, so that what is trained here is read there where they can."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ditmoe.checkpoint import in_memory, replacing
from ditmoe.checkpoint.lazy_tensors import open_file
from ditmoe.nn.lora import DOWN, UP, State
from ditmoe.outside import is_regular, printable
from ditmoe.pipelines.trusted_folder import LORA

PREFIX = "transformer.net."


def file_state(added: Mapping[str, tuple[Any, Any]], scale: float = 1.0) -> dict[str, Tensor]:
    """A and B by their names in a file, with the scale in B: whoever reads it takes alpha = r where nothing is said.

    A matrix of a linear layer is `transformer.net.<layer>.lora_A.weight`, as everywhere; of stacked experts, for which
    nobody else has a name, `transformer.net.<parameter>.lora_A` with the experts in front.
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
    """A and B by the name of the parameter, from the names of a file.

    Raises:
        ValueError: one line, for a name that is none of LoRA, or has no partner.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        place, _, last = (
            key.removeprefix("transformer.").removeprefix("net.").removesuffix(".weight").rpartition(".")
        )
        if last not in (DOWN, UP):
            raise ValueError(
                f"a file of LoRA must hold {DOWN} and {UP} of weights alone, got {printable(key)}"
            )
        found.setdefault(f"{place}.weight" if key.endswith(".weight") else place, {})[last] = in_memory(value)
    for name, pair in found.items():
        if len(pair) < 2:
            raise ValueError(f"LoRA of {printable(name)} must have both {DOWN} and {UP}")
        if not all(tensor.isfinite().all() for tensor in pair.values()):
            raise ValueError(f"LoRA of {printable(name)} must be finite numbers")
    if not found:
        raise ValueError("a file of LoRA must hold at least one weight, got an empty one")
    return {name: (pair[DOWN], pair[UP]) for name, pair in found.items()}


def read(place: str | Path | Mapping[str, Tensor], weight_name: str | None = None) -> State:
    """What a file holds, or the one of that name in a folder (by default diffusers' own name); or a dictionary itself.

    Raises:
        FileNotFoundError, ValueError: one line.
    """
    if isinstance(place, Mapping):
        return named(place)
    file = Path(place) / (weight_name or LORA) if Path(place).is_dir() else Path(place)
    if not is_regular(file):
        raise FileNotFoundError(
            f"{file} must be a file of LoRA (safetensors), or a folder with {weight_name or LORA}"
        )
    if file.suffix != ".safetensors":
        raise ValueError(f"{file} could hold code, refused: LoRA must be safetensors")
    return named(open_file(file))


def write(folder: str | Path, state: Mapping[str, Tensor], weight_name: str | None = None) -> Path:
    """Write a file, whole or not at all; returns where."""
    file = Path(folder) / (weight_name or LORA)
    with replacing(file) as stream:
        stream.write(save({name: value.to(torch.float32) for name, value in state.items()}, {"format": "pt"}))
    return file
