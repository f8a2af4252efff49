"""From configuration to objects; the only module that knows Hydra's instantiate."""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from torch import nn

from ditmoe import checkpoint
from ditmoe.modality import Modality, Tokens
from ditmoe.model import DiTMoE
from ditmoe.moe import Router
from ditmoe.options import Part, as_parts, call, check_number, check_options
from ditmoe.process import Process
from ditmoe.sampler import make_scheduler, try_scheduler
from ditmoe.stored import in_memory

TRUSTED = ("ditmoe", "modalities", "diffusers", "torch.optim")
"""Packages whose classes a configuration that came with a checkpoint may name."""
LARGEST = 2**24
"""No number of such a configuration is larger."""
LARGEST_SAMPLE = 2**28
"""Numbers of one sample, 1 GB of them."""


def make(config: Mapping[str, Any], **arguments: Any) -> Any:
    """Call what a section of the configuration names with its options and `arguments`.

    Hydra makes the options, nested sections included, but not the call: it would take an argument that holds
    a `_target_` itself (a checkpoint's configuration) for one more section. With `_partial_` the call is
    left to whoever has the arguments that are still missing.
    """
    target, name = find_target(config)
    options = as_parts(instantiate({k: v for k, v in config.items() if k[0] != "_"}, _convert_="all"))
    check_options(name, target, options)
    if config.get("_partial_"):
        return Part.of(name, target, options | arguments)
    return call(name, target, **(options | arguments))


def find_target(config: Any) -> tuple[Callable[..., Any], str]:
    """What a section of the configuration names, and under which name.

    Raises:
        ValueError: if it names nothing that can be called.
    """
    if not isinstance(config, Mapping) or not isinstance(name := config.get("_target_"), str):
        raise ValueError(f"a section must name a class in _target_, got {config!r}")
    try:
        target = get_object(name)
    except Exception as error:
        raise ValueError(f"{name} cannot be found: {error}") from error
    if not callable(target):
        raise ValueError(f"{name} is no class, but a {type(target).__name__}")
    return target, name


def make_modality(config: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> Modality:
    """The modality of a configuration; `facts` come from a checkpoint and stand in for the data set."""
    return make(config["modality"], facts=facts)


def make_model(config: Mapping[str, Any], modality: Modality) -> DiTMoE:
    """A freshly initialised model for a modality."""
    return make(
        config["model"],
        tokens=make_tokens(config, modality),
        num_classes=len(modality.classes),
        router=make_router(config["router"]),
    )


def make_tokens(config: Mapping[str, Any], modality: Modality) -> Tokens:
    """The patchifier of a model; made before it, so that a width that is none is refused here."""
    model = config["model"]
    if not isinstance(model, Mapping) or "hidden_size" not in model:
        raise ValueError(f"model must be a section with a hidden_size, got {model!r}")
    check_number("hidden_size", model["hidden_size"], 1, whole=True)
    return modality.tokens(model["hidden_size"])


def make_router(config: Mapping[str, Any] | None) -> Callable[..., Router] | None:
    """What makes the router of a layer; None for a dense model, which has no or zero experts."""
    return make(config) if config and config.get("num_experts", 1) else None


def make_optimizer(config: Mapping[str, Any], parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of a configuration over parameters, or groups of them."""
    return make(config["optimizer"])(parameters)


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds, ready to sample."""

    model: DiTMoE
    modality: Modality
    process: Process
    config: dict[str, Any]
    step: int
    folder: Path


def restore(path: str | Path, top_k: int | None = None, device: torch.device | None = None) -> Restored:
    """Build the model of a checkpoint with its averaged weights, in evaluation mode.

    Args:
        path: a run's folder or its checkpoint file.
        top_k: activate another number of experts per token than training did.

    Raises:
        FileNotFoundError, ValueError: one line each, see `checkpoint.load`.
    """
    found = checkpoint.find(path, parts=("ema", "facts"))
    config = found.part("config")
    check_trusted(config, found.path)
    if top_k is not None:
        router = config["router"].get("router") or config["router"]  # the one within timestep's segments
        if not router.get("top_k") or router["_target_"].endswith((".ExpertRace", ".ReLU")):
            raise ValueError(
                f"top_k cannot be changed: the router of {found.path} does not choose by it when sampling"
            )
        router["top_k"] = top_k
    weights = found.tensors.get("ema", {})
    with describing(found.path):
        check_sizes(config, weights)
        modality, process = make_modality(config, found.part("facts")), make(config["process"])
        try_scheduler(make_scheduler(make(config["scheduler"]), process), process)
        check_shape(modality.sample_shape)
        with torch.device("meta"):
            check_fit(make_model(config, modality), weights, found.path)
        model = make_model(config, modality)
        load_weights(model, weights, found.path)
    model = model.to(device or default_device()).eval()
    return Restored(model, modality, process, config, found.plain["step"], found.run)


@contextmanager
def describing(file: Path | str) -> Iterator[None]:
    """Make something of a configuration that came in a file: whatever it makes fail is one line about that file."""
    try:
        yield
    except (ValueError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")[:160]
        raise ValueError(
            f"{file} holds a configuration of which nothing can be made: {type(error).__name__}: {reason}"
        ) from error


def check_sizes(config: Any, weights: Mapping[str, Any]) -> None:
    """Refuse a model with more layers than there are tensors, and numbers that only exhaust a machine.

    Raises:
        ValueError: naming the first.
    """
    check_depth(config["model"], weights)

    def walk(value: Any, name: str) -> None:
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"{name} is absurd, refused: {value}")
        for key, inner in (
            value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
        ):
            walk(inner, f"{name}.{key}")

    for section in ("model", "router", "modality", "process", "scheduler", "sampling"):
        walk(config[section], section)


def check_depth(model: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Raises ValueError if there are more layers than tensors, before any is made."""
    if not isinstance(model["depth"], int) or model["depth"] > len(weights):
        raise ValueError(f"model.depth is {model['depth']!r}, but there are {len(weights)} tensors")


def check_shape(shape: Sequence[int]) -> None:
    """Raises ValueError if no sample has that shape."""
    if not all(isinstance(n, int) and n > 0 for n in shape) or math.prod(shape) > LARGEST_SAMPLE:
        raise ValueError(f"the shape of a sample is absurd, refused: {list(shape)}")


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Any], file: Path) -> None:
    """Load weights that must fit exactly, and be finite, from the disk one at a time; the error names the first that
    does not.
    """
    check_fit(model, weights, file)
    for name, value in model.state_dict().items():
        value.copy_(in_memory(weights[name]))
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{file} holds numbers that are not finite: {name}")


def check_fit(model: nn.Module, weights: Mapping[str, Any], file: Path) -> None:
    """Raises ValueError naming the first tensor that the model has not, or in another shape."""
    own = model.state_dict()
    for name in [*own, *weights]:
        shapes = [tuple(getattr(tensors.get(name), "shape", "-")) for tensors in (weights, own)]
        if shapes[0] != shapes[1]:
            there, here = ("missing" if shape == ("-",) else shape for shape in shapes)
            raise ValueError(f"{file} does not fit the model: {name} is {there} there, {here} here")


def check_trusted(config: Any, file: Path) -> None:
    """Refuse a configuration that names anything but classes of the trusted packages.

    Raises:
        ValueError: naming the target.
    """
    if isinstance(config, str) and "${" in config:
        raise ValueError(f"{file} holds an interpolation in its configuration, refused: {config!r}")
    if isinstance(config, list):
        for value in config:
            check_trusted(value, file)
    if isinstance(config, dict):
        if "_target_" in config and not _is_trusted(config["_target_"]):
            raise ValueError(f"{file} names a class that is not trusted, refused: {config['_target_']!r}")
        for value in config.values():
            check_trusted(value, file)


def _is_trusted(target: Any) -> bool:
    def inside(name: str) -> bool:
        return any(name == package or name.startswith(f"{package}.") for package in TRUSTED)

    if not isinstance(target, str) or not inside(target):
        return False
    try:
        found = get_object(target)
    except Exception:
        return False
    return isinstance(found, type) and inside(found.__module__)


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def label_index(classes: list[str], label: str | int) -> int:
    """The index of a class given by name or number.

    Raises:
        ValueError: naming the nearest class, or all of them.
    """
    if str(label) in classes:
        return classes.index(str(label))
    if str(label).isdigit() and int(label) < len(classes):
        return int(label)
    near = difflib.get_close_matches(str(label), classes, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(classes)}"
    raise ValueError(f"label {label!r} is not a class of this model; {hint}")
