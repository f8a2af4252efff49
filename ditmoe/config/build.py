"""From configuration to objects."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ditmoe.checkpoint.fit import describing as describing
from ditmoe.conditioning import Conditioning
from ditmoe.config.known_classes import find
from ditmoe.diffusion import Objective, Process
from ditmoe.modality import Captions, Modality, Tokens
from ditmoe.model import DiTMoE, set_base
from ditmoe.moe import Router
from ditmoe.outside import check_number
from ditmoe.outside.options import Part, call, check_options

BASE = ("base_width", "base_heads", "keep_router_logits")
"""Options of a model's section that its class does not take: what muP wants to know."""
LARGEST_BASE = 8
"""Of the width of a base, which takes memory while a model is made, over the model's."""


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
    if not isinstance(partial_ := config.get("_partial_", False), bool):
        raise ValueError(f"_partial_ of {name} must be true or false, got {partial_!r}")
    if partial_:
        return Part.of(name, target, options | arguments)
    return call(name, target, **(options | arguments))


def make_whole(config: Mapping[str, Any], **arguments: Any) -> Any:
    """`make` of what is needed at once.

    Raises:
        ValueError: also for a section with `_partial_`.
    """
    made = make(config, **arguments)
    if isinstance(made, Part):
        raise ValueError(f"{made.name} is needed whole: its section must not say _partial_: true")
    return made


def _made(value: Any) -> Any:
    if isinstance(value, dict):
        return make(value) if "_target_" in value else {name: _made(inner) for name, inner in value.items()}
    return [_made(inner) for inner in value] if isinstance(value, list) else value


def find_target(config: Any) -> tuple[Callable[..., Any], str]:
    """What a section of the configuration names, and under which name.

    Raises:
        ValueError: if it names no class.
    """
    if not isinstance(config, Mapping) or not isinstance(name := config.get("_target_"), str):
        raise ValueError(f"a section must name a class in _target_, got {config!r}")
    try:
        target = find(name)
    except ValueError as error:
        raise ValueError(f"_target_: {error}") from error
    if not isinstance(target, type):
        raise ValueError(f"{name} is no class, but a {type(target).__name__}")
    return target, name


def make_modality(config: Mapping[str, Any], data_facts: Mapping[str, Any] | None = None) -> Modality:
    """The modality of a configuration; `data_facts` come from a checkpoint and stand in for the data set."""
    return make_whole(config["modality"], data_facts=data_facts)


def make_model(config: Mapping[str, Any], modality: Modality) -> DiTMoE:
    """A freshly initialised model for a modality."""
    check_section(config)
    return assemble(config, modality.tokens, len(modality.classes), modality)


def assemble(
    config: Mapping[str, Any],
    tokens: Callable[[int], Tokens],
    num_classes: int,
    modality: Modality | None = None,
) -> DiTMoE:
    """A freshly initialised model; with `model.base_width` by muP, of which the model's class knows nothing.

    Args:
        config: sections "model", "router" and "conditioning".
        tokens: makes the patchifier from D.
        modality: of which a conditioning that reads captions takes their words.

    Raises:
        ValueError: if there is no such model, or none at the base width.
    """
    options = {name: value for name, value in config["model"].items() if name not in BASE}
    parts = {
        "conditioning": make_conditioning(config, num_classes, modality),
        "router": make_router(config["router"]),
    }
    model = make_whole(options, tokens=tokens(options["hidden_size"]), **parts)
    width = config["model"].get("base_width")
    if width is None:
        check_no_base(config["model"])
        return model
    kept = config["model"].get("keep_router_logits", False)
    if not isinstance(kept, bool):
        raise ValueError(f"model.keep_router_logits must be true or false, got {kept!r}")
    at_base = {"hidden_size": width, "num_heads": base_heads(config["model"])}
    with torch.random.fork_rng(devices=[]), told_of_base(width):
        torch.default_generator.manual_seed(0)
        base = make(options | at_base, tokens=tokens(width), **parts)
        set_base(model, base, kept)
    return model


def check_no_base(model: Mapping[str, Any]) -> None:
    """Raises ValueError if a model without a base width has options that belong to one."""
    for name in BASE[1:]:
        if model.get(name):
            raise ValueError(f"model.{name} must come with a model.base_width, got {model[name]}")


def base_heads(model: Mapping[str, Any]) -> int:
    """Attention heads of the model at its base width: by default as large as the model's.

    Raises:
        ValueError: if that is no number, or the width not a multiple of it.
    """
    width, heads = model["base_width"], model.get("base_heads")
    check_number("model.base_width", width, 1, LARGEST_BASE * model["hidden_size"], whole=True)
    if heads is not None:
        check_number("model.base_heads", heads, 1, width, whole=True)
        if width % heads:
            raise ValueError(f"model.base_width must be a multiple of base_heads, got {width} and {heads}")
        return heads
    size = model["hidden_size"] // model["num_heads"]
    if width % size:
        raise ValueError(
            f"model.base_width must be a multiple of {size}, the size of a head (hidden_size / num_heads), or "
            f"model.base_heads say how many heads there are at that width, got {width}"
        )
    return width // size


def attention_gain(model: Mapping[str, Any]) -> float:
    """What muP multiplies the logits of attention by, sqrt(size of the base's heads / size of the model's)."""
    if model.get("base_width") is None:
        return 1.0
    base = model["base_width"] // base_heads(model)
    return math.sqrt(base / (model["hidden_size"] // model["num_heads"]))


@contextmanager
def told_of_base(width: int) -> Iterator[None]:
    """Say of what fails that it does at the base width."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model.base_width={width}: {error}") from error


def make_tokens(config: Mapping[str, Any], modality: Modality) -> Tokens:
    """The patchifier of a model."""
    check_section(config)
    return modality.tokens(config["model"]["hidden_size"])


def check_section(config: Mapping[str, Any]) -> None:
    """Raises ValueError unless the model is a section with a width; patchifiers take it as it comes."""
    model = config["model"]
    if not isinstance(model, Mapping) or "hidden_size" not in model:
        raise ValueError(f"model must be a section with a hidden_size, got {model!r}")
    check_number("hidden_size", model["hidden_size"], 1, whole=True)


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
    return make_whole(config["objective"], process=process)


def make_optimizer(config: Mapping[str, Any], parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of a configuration over groups of parameters.

    Raises:
        ValueError: if it cannot take a step by gradients alone, which is tried on four numbers.
    """
    maker = make(config["optimizer"])
    first = next(iter(parameters[0]["params"]))
    tried = torch.ones((2, 2), dtype=first.dtype, device=first.device).requires_grad_()
    tried.grad = torch.ones_like(tried)
    try:
        maker([{"params": [tried]}]).step()
        return maker(parameters)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of closures, sparse gradients, options that exclude each other, ...
        reason = next(iter(str(error).splitlines()), "")[:160] or type(error).__name__
        raise ValueError(
            "optimizer must be one that takes a step by gradients alone, such as torch.optim.AdamW, got "
            f"{config['optimizer'].get('_target_')}, which says: {reason}"
        ) from error
