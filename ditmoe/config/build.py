"""From configuration to objects."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ditmoe.checkpoint.fit import describing as describing
from ditmoe.conditioning import Conditioning
from ditmoe.config import trust
from ditmoe.diffusion import Objective, Process
from ditmoe.modality import Captions, Modality, Tokens
from ditmoe.model import DiTMoE
from ditmoe.moe import Router
from ditmoe.outside import check_number
from ditmoe.outside.options import Part, call, check_options


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
        conditioning=make_conditioning(config, len(modality.classes), modality),
        router=make_router(config["router"]),
    )


def make_tokens(config: Mapping[str, Any], modality: Modality) -> Tokens:
    """The patchifier of a model; made before it, so that a width that is none is refused here."""
    model = config["model"]
    if not isinstance(model, Mapping) or "hidden_size" not in model:
        raise ValueError(f"model must be a section with a hidden_size, got {model!r}")
    check_number("hidden_size", model["hidden_size"], 1, whole=True)
    return modality.tokens(model["hidden_size"])


def make_conditioning(
    config: Mapping[str, Any], num_classes: int, modality: Modality | None = None
) -> Callable[..., Conditioning]:
    """What makes the module that embeds what is asked for, of a width.

    Raises:
        ValueError: if it reads captions, and the modality has none.
    """
    section = config["conditioning"]
    words: dict[str, Any] = {}
    if modality is not None and _reads_captions(section):
        captions = Captions.of(modality, "train conditioning=text")
        encoder = section.get("encoder")
        if isinstance(encoder, Mapping) and getattr(find_target(encoder)[0], "learns_words", False):
            words["caption_words"] = captions.caption_words
    return partial(make(section), num_classes=num_classes, **words)


def remember_conditioning(config: dict[str, Any], modality: Modality) -> None:
    """Put into a configuration what a checkpoint must have of what embeds captions: which encoder, and some of them."""
    if not _reads_captions(section := config["conditioning"]):
        return
    captions = Captions.of(modality, "train conditioning=text").captions_of_split("train")
    remember = find_target(section)[0].remember  # type: ignore[attr-defined]
    options = {key: _made(value) for key, value in section.items() if key not in ("_target_", "_partial_")}
    config["conditioning"] = section | remember(options, captions)


def _reads_captions(section: Any) -> bool:
    return getattr(find_target(section)[0], "reads_captions", False)


def make_router(config: Mapping[str, Any] | None) -> Callable[..., Router] | None:
    """What makes the router of a layer; None for a dense model, which has no or zero experts."""
    return make(config) if config and config.get("num_experts", 1) else None


def make_objective(config: Mapping[str, Any], process: Process) -> Objective:
    """What is optimised, of the times and targets of a process."""
    return make(config["objective"], process=process)


def make_optimizer(config: Mapping[str, Any], parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of a configuration over parameters, or groups of them."""
    return make(config["optimizer"])(parameters)


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
