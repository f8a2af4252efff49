"""Checks that weights fit a model, before memory for the model is allocated."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditmoe.checkpoint.lazy_tensors import open_file
from ditmoe.outside import file_name, is_regular, printable, read_object

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model"
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@contextmanager
def bounded(tensors: int) -> Iterator[None]:
    """Limit the modules of a model built within this context to 1000 + 8 per tensor that is to fill it.

    Raises:
        ValueError: while the model is built, if it has more modules.
    """
    left = 1000 + 8 * tensors

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"the model would have more parts than its {tensors} tensors can fill")

    handle = nn.modules.module.register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def describing(file: Path | str) -> Iterator[None]:
    """Turn any error while building from a file's configuration into one line that names the file.

    Text of the configuration in a ValueError is made printable. OSError and running out of GPU memory pass unchanged.
    """
    try:
        yield
    except (OSError, torch.OutOfMemoryError):
        raise
    except ValueError as error:
        if (told := str(error)) == (shown := printable(told)):
            raise
        raise ValueError(shown) from error
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")[:160]
        raise ValueError(
            f"{file} holds a configuration that cannot be built: {type(error).__name__}: {reason}"
        ) from error


def check_fit(model: nn.Module, weights: Mapping[str, Any], file: Path) -> None:
    """Raises ValueError naming the first tensor that model and weights do not share, or that differs in shape."""
    check_shapes(model.state_dict(), weights, file)


def check_shapes(own: Mapping[str, Any], weights: Mapping[str, Any], file: Path) -> None:
    """As `check_fit`, for two dicts of tensors by name."""
    for name in [*own, *weights]:
        shapes = [tuple(getattr(tensors.get(name), "shape", "-")) for tensors in (weights, own)]
        if shapes[0] != shapes[1]:
            stored, built = ("missing" if shape == ("-",) else shape for shape in shapes)
            raise ValueError(f"{file} does not fit the model: {name} is {stored} there, {built} in the model")


def check_fits(kind: Any, folder: Path, variant: str | None = None) -> None:
    """Check that the weights of a diffusers model fit its configuration.

    Args:
        kind: the model's class, a ModelMixin.
        folder: holds its config.json and safetensors.
        variant: of the weights, as in the file names of diffusers.

    Raises:
        OSError, ValueError: one line, such as the name of the first tensor that does not fit.
    """
    file = folder / CONFIG
    config = read_object(file)
    if "quantization_config" in config:
        raise ValueError(f"{file} asks for quantised weights, which are not supported")
    tensors = _tensors(folder, variant)
    with describing(file), torch.device("meta"), bounded(len(tensors)):
        model = kind.from_config(config)
    own = model.state_dict()
    check_fit(model, {_renamed(name, own): value for name, value in tensors.items()}, folder)


def _tensors(folder: Path, variant: str | None) -> dict[str, Any]:
    """The tensors that diffusers reads from a folder: those of an index, else of one file, preferring the variant.

    A parameter that is missing there would be initialised at random.
    """
    marks = [f".{variant}", ""] if variant else [""]
    for mark in marks:
        index = folder / f"{WEIGHTS}.safetensors.index{mark}.json"
        if not os.path.lexists(index):
            if is_regular(whole := folder / f"{WEIGHTS}{mark}.safetensors") or mark == marks[-1]:
                return open_file(whole)
            continue
        named = read_object(index).get("weight_map")
        if not isinstance(named, dict) or not all(
            isinstance(file, str) and file == file_name(file) for file in named.values()
        ):
            raise ValueError(f"{index} must name a file in the same folder for each tensor")
        files = {file: open_file(folder / file) for file in sorted(set(named.values()))}
        if named != {name: file for file, tensors in files.items() for name in tensors}:
            raise ValueError(f"{index} must list every tensor of its files, each with the file that holds it")
        return {name: value for tensors in files.values() for name, value in tensors.items()}
    raise AssertionError


def _renamed(name: str, own: Mapping[str, Any]) -> str:
    """A tensor's current name. Attention in autoencoders had other names before, which diffusers still reads."""
    place, _, kind = name.rpartition(".")
    place, _, layer = place.rpartition(".")
    return name if name in own or layer not in RENAMED else f"{place}.{RENAMED[layer]}.{kind}"
