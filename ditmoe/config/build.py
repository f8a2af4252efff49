"""From configuration to objects."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditmoe import checkpoint
from ditmoe.checkpoint import in_memory
from ditmoe.config import trust
from ditmoe.diffusion import Process, make_scheduler, try_scheduler
from ditmoe.modality import Modality, Tokens
from ditmoe.model import DiTMoE
from ditmoe.moe import Router
from ditmoe.outside import check_number
from ditmoe.outside.options import Part, call, check_options

SECTIONS = ("model", "router", "modality", "process", "scheduler", "sampling")
"""Of a checkpoint's configuration: what sampling needs."""
LARGEST_SAMPLE, LARGEST_TOKENS = 2**22, 2**26
"""Numbers of one sample, and of its tokens in the model, unless the person trusts the checkpoint: 16 and 256 MB."""


def make(config: Mapping[str, Any], **arguments: Any) -> Any:
    """Call what a section of the configuration names (`_target_`) with its options and `arguments`.

    Sections within the options are made first. With `_partial_` the call is left to whoever has the arguments that are
    still missing.

    Raises:
        ValueError: if there is no such thing, or it does not take these options.
    """
    target, name = find_target(config)
    options = {key: _made(value) for key, value in config.items() if key not in ("_target_", "_partial_")}
    check_options(name, target, options)
    if config.get("_partial_"):
        return Part.of(name, target, options | arguments)
    return call(name, target, **(options | arguments))


def _made(value: Any) -> Any:
    if isinstance(value, dict):
        return make(value) if "_target_" in value else {name: _made(inner) for name, inner in value.items()}
    return [_made(inner) for inner in value] if isinstance(value, list) else value


def find_target(config: Any) -> tuple[Callable[..., Any], str]:
    """What a section of the configuration names, and under which name.

    Raises:
        ValueError: if it names nothing that can be called.
    """
    if not isinstance(config, Mapping) or not isinstance(name := config.get("_target_"), str):
        raise ValueError(f"a section must name a class in _target_, got {config!r}")
    target = trust.find(name)
    if not callable(target):
        raise ValueError(f"{name} is no class, but a {type(target).__name__}")
    return target, name


def make_modality(config: Mapping[str, Any], data_facts: Mapping[str, Any] | None = None) -> Modality:
    """The modality of a configuration; `data_facts` come from a checkpoint and stand in for the data set."""
    return make(config["modality"], data_facts=data_facts)


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


def restore(
    path: str | Path,
    top_k: int | None = None,
    device: torch.device | None = None,
    trusted: trust.Trust = False,
) -> Restored:
    """Build the model of a checkpoint with its averaged weights, in evaluation mode.

    Args:
        path: a run's folder or a checkpoint in it.
        top_k: activate another number of experts per token than training did.
        trusted: paths and hub names that the checkpoint may open, see `ditmoe.config.trust`.

    Raises:
        FileNotFoundError, ValueError: one line each, see `checkpoint.load`.
    """
    found = checkpoint.find(path, parts=("ema", "facts"))
    config, data_facts = admitted(found, trusted)
    if top_k is not None:
        router = config["router"] or {}
        router = router.get("router") or router  # the one within timestep's segments
        if not router.get("top_k") or not getattr(find_target(router)[0], "top_k_in_sampling", False):
            raise ValueError(
                f"top_k cannot be changed: the router of {found.path} does not choose by it when sampling"
            )
        router["top_k"] = top_k
    weights = found.tensors.get("ema", {})
    with describing(found.path):
        modality, process = make_modality(config, data_facts), make(config["process"])
        try_scheduler(make_scheduler(make(config["scheduler"]), process), process)
        check_model(config, modality, weights, found.path, trusted)
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


def check_depth(model: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Raises ValueError if there are more layers than tensors, before any is made."""
    if not isinstance(model["depth"], int) or model["depth"] > len(weights):
        raise ValueError(f"model.depth is {model['depth']!r}, but there are {len(weights)} tensors")


def check_shape(shape: Sequence[int], most: float = LARGEST_SAMPLE) -> None:
    """Raises ValueError if no sample has that shape, or it has more numbers."""
    if not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"no sample has the shape {list(shape)}")
    if math.prod(shape) > most:
        raise ValueError(f"a sample would be {list(shape)} numbers: if you know why, say trust=true")


def check_model(
    config: Mapping[str, Any],
    modality: Modality,
    weights: Mapping[str, Any],
    file: Path,
    trusted: trust.Trust = False,
) -> None:
    """Refuse a model that the weights do not fit, or that would exhaust the machine, before any memory is taken.

    Raises:
        ValueError: one line.
    """
    check_depth(config["model"], weights)
    check_shape(modality.sample_shape, math.inf if trusted is True else LARGEST_SAMPLE)
    with torch.device("meta"):
        model = make_model(config, modality)
    check_fit(model, weights, file)
    if trusted is not True:
        check_work(model, modality.sample_shape)


def check_work(model: DiTMoE, shape: Sequence[int]) -> None:
    """Refuse a checkpoint whose few weights would cut a sample into more tokens than a machine can hold.

    Raises:
        ValueError: saying how many.
    """
    tokens, x = model.tokens, torch.empty(1, *shape, device="meta")
    number = math.prod(tokens.grid(x))
    width = max(tokens.in_features, tokens.out_features, model.embed.out_features)
    if number * width > LARGEST_TOKENS:
        raise ValueError(
            f"a sample would be {number} tokens of {width} numbers: if you know why, say trust=true"
        )


def admitted(
    found: checkpoint.Checkpoint, trusted: trust.Trust = False, *others: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of a checkpoint (`SECTIONS` and others), and what it knows of its data.

    Raises:
        ValueError: if either holds what a stranger's may not, see `ditmoe.config.trust`.
    """
    config = trust.admit(found.part("config"), (*SECTIONS, *others), found.path, trusted)
    data_facts = found.part("facts")
    trust.check_plain(found.plain["facts"], f"the facts of {found.path}")
    if type(data_facts) is not dict:
        raise ValueError(f"the facts of {found.path} must be a dict, got {type(data_facts).__name__}")
    return config, data_facts


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


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
