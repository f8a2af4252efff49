"""Builds objects from a configuration."""

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
"""Options of the model's section that configure muP and are not passed to the model's class."""
LARGEST_BASE = 8
"""Largest base width over the model's width; the base model takes memory while a model is built."""


def make(config: Mapping[str, Any], **arguments: Any) -> Any:
    """Call the class or function that a section names in `_target_`, with its options and `arguments`.

    Sections nested in the options are built first. With `_partial_: true`, returns a `Part`, which takes the missing
    arguments when it is called.

    Raises:
        ValueError: if the target does not exist, or does not accept these options.
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
    """As `make`, for a section that must be complete.

    Raises:
        ValueError: also for a section with `_partial_: true`.
    """
    made = make(config, **arguments)
    if isinstance(made, Part):
        raise ValueError(f"the section of {made.name} must be complete, got _partial_: true")
    return made


def _made(value: Any) -> Any:
    if isinstance(value, dict):
        return make(value) if "_target_" in value else {name: _made(inner) for name, inner in value.items()}
    return [_made(inner) for inner in value] if isinstance(value, list) else value


def find_target(config: Any) -> tuple[Callable[..., Any], str]:
    """The class or function that a section names in `_target_`, and its dotted name.

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
    """The modality of a configuration; `data_facts` come from a checkpoint and replace the data set."""
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
    """A freshly initialised model; with `model.base_width`, scaled by muP, independently of the model's class.

    Args:
        config: sections "model", "router" and "conditioning".
        tokens: makes the patchifier from D.
        modality: supplies the words of its captions to a conditioning that needs them.

    Raises:
        ValueError: if the model, or its base model, cannot be built.
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
    """Raises ValueError if options that need a base width are set without one."""
    for name in BASE[1:]:
        if model.get(name):
            raise ValueError(f"model.{name} must come with a model.base_width, got {model[name]}")


def base_heads(model: Mapping[str, Any]) -> int:
    """Number of attention heads at the base width; by default heads have the same size as the model's.

    Raises:
        ValueError: if it is not a valid number, or the base width is not a multiple of it.
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
            f"model.base_width must be a multiple of {size}, the size of a head (hidden_size / num_heads), unless "
            f"model.base_heads gives the number of heads at that width, got {width}"
        )
    return width // size


def attention_gain(model: Mapping[str, Any]) -> float:
    """muP's factor on the attention logits, sqrt(head size at the base width / head size of the model)."""
    if model.get("base_width") is None:
        return 1.0
    base = model["base_width"] // base_heads(model)
    return math.sqrt(base / (model["hidden_size"] // model["num_heads"]))


@contextmanager
def told_of_base(width: int) -> Iterator[None]:
    """Prefix errors with the base width."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model.base_width={width}: {error}") from error


def make_tokens(config: Mapping[str, Any], modality: Modality) -> Tokens:
    """The patchifier of a model."""
    check_section(config)
    return modality.tokens(config["model"]["hidden_size"])


def check_section(config: Mapping[str, Any]) -> None:
    """Raises ValueError unless the model is a section with a valid width, which patchifiers do not check."""
    model = config["model"]
    if not isinstance(model, Mapping) or "hidden_size" not in model:
        raise ValueError(f"model must be a section with a hidden_size, got {model!r}")
    check_number("hidden_size", model["hidden_size"], 1, whole=True)


def make_conditioning(
    config: Mapping[str, Any], num_classes: int, modality: Modality | None = None
) -> Callable[..., Conditioning]:
    """A factory that builds the conditioning module for a width.

    Raises:
        ValueError: if the conditioning reads captions and the modality has none.
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
    """Add to a configuration what a checkpoint must record of a text conditioning: its encoder and some captions."""
    if not _reads_captions(section := config["conditioning"]):
        return
    captions = Captions.of(modality, "train conditioning=text").captions_of_split("train")
    remember = find_target(section)[0].remember  # type: ignore[attr-defined]
    options = {key: _made(value) for key, value in section.items() if key not in ("_target_", "_partial_")}
    config["conditioning"] = section | remember(options, captions)


def _reads_captions(section: Any) -> bool:
    return getattr(find_target(section)[0], "reads_captions", False)


def make_router(config: Mapping[str, Any] | None) -> Callable[..., Router] | None:
    """A factory of routers; None for a dense model, with no router section or `num_experts` = 0."""
    return make(config) if config and config.get("num_experts", 1) else None


def make_objective(config: Mapping[str, Any], process: Process) -> Objective:
    """The training objective, for the times and targets of a process."""
    return make_whole(config["objective"], process=process)


def make_optimizer(config: Mapping[str, Any], parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of a configuration over parameter groups.

    Raises:
        ValueError: if it cannot take a step from gradients alone; this is tested on a tensor of four numbers.
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
    except Exception as error:  # it needs closures or sparse gradients, its options exclude each other, ...
        reason = next(iter(str(error).splitlines()), "")[:160] or type(error).__name__
        raise ValueError(
            "optimizer must be one that takes a step from gradients alone, such as torch.optim.AdamW, got "
            f"{config['optimizer'].get('_target_')}, which raises: {reason}"
        ) from error
