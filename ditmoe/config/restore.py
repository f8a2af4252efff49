"""From a checkpoint to objects that are ready to sample."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ditmoe import checkpoint
from ditmoe.checkpoint import in_memory
from ditmoe.checkpoint.fit import bounded, check_fit
from ditmoe.config import trust
from ditmoe.config.build import describing, find_target, make, make_modality, make_model, make_whole
from ditmoe.config.earlier import renamed
from ditmoe.config.facts import check_known
from ditmoe.config.limits import LARGEST_SAMPLE, check_depth, check_shape, check_work
from ditmoe.config.weaker import Meaning
from ditmoe.diffusion import Process, Sampling, make_scheduler, try_scheduler
from ditmoe.modality import Modality
from ditmoe.model import DiTMoE, LowMemory
from ditmoe.moe import Traffic
from ditmoe.nn import LoRA
from ditmoe.nn.lora import LowRank, product_shape, split
from ditmoe.outside import check_number
from ditmoe.outside import device as own_device

Net = TypeVar("Net", bound=nn.Module)
SECTIONS = ("model", "router", "conditioning", "modality", "process", "scheduler", "sampling")
"""Of a checkpoint's configuration: what sampling needs."""


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds, ready to sample.

    Attributes:
        traffic: what is counted of experts that are on the host; None where they are not.
    """

    model: DiTMoE
    modality: Modality
    process: Process
    config: dict[str, Any]
    step: int
    folder: Path
    traffic: Traffic | None = None

    @property
    def meaning(self) -> Meaning:
        """What the model's predictions are of."""
        adapter = self.modality
        facts = adapter.data_facts()
        return Meaning(adapter.name, adapter.sample_shape, facts, self.process, self.config["conditioning"])


def restore(
    path: str | Path,
    top_k: int | None = None,
    device: torch.device | None = None,
    trusted: trust.Trust = False,
    memory: LowMemory | None = None,
) -> Restored:
    """Build the model of a checkpoint with its averaged weights, in evaluation mode.

    Args:
        path: a run's folder or a checkpoint in it.
        top_k: activate another number of experts per token than training did.
        trusted: paths and hub names that the checkpoint may open, see `ditmoe.config.trust`.
        memory: how its weights are kept; None as they are.

    Raises:
        FileNotFoundError, ValueError: one line each, see `checkpoint.load`.
    """
    found = checkpoint.find(path, parts=("ema", "facts"))
    config, data_facts = admitted(found, trusted)
    if top_k is not None:
        set_top_k(config, top_k, found.path)
    weights = averaged(found)
    with describing(found.path):
        modality, process = make_modality(config, data_facts), make_whole(config["process"])
        modality.check_facts()
        try_scheduler(make_scheduler(make(config["scheduler"]), process), process)
        make_own = partial(make_model, config, modality)
        planned = make_checked(make_own, config, modality, weights, found.path, trusted)
        where = torch.device(device or own_device())
        model, traffic = _filled(planned, make_own, weights, found.path, where, memory or LowMemory())
    return Restored(model.eval(), modality, process, config, found.plain["step"], found.run, traffic)


def _filled(
    planned: DiTMoE,
    make_own: Callable[[], DiTMoE],
    weights: Mapping[str, Any],
    file: Path,
    device: torch.device,
    memory: LowMemory,
) -> tuple[DiTMoE, Traffic | None]:
    """The model with its weights, each read from the disk to where it is kept."""
    model = materialise(memory.emptied(planned), lambda: memory.emptied(make_own()), device)
    own = {name: weights[name] for name in model.state_dict()}
    load_weights(model, own, file)

    def read(name: str) -> torch.Tensor:
        return checked(in_memory(weights[name]), name, file)

    return model, memory.fill(model, read, device)


@dataclass(frozen=True)
class Merged:
    """A weight and what LoRA adds to it, summed when it is asked for."""

    plain: Any
    down: Any
    up: Any
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return tuple(self.plain.shape)

    def read(self) -> torch.Tensor:
        """The sum, in the weight's type."""
        low = LowRank(in_memory(self.down), in_memory(self.up), self.scale)
        with torch.no_grad():
            return low(in_memory(self.plain))


def averaged(found: checkpoint.Checkpoint) -> dict[str, Any]:
    """The averaged weights of a run by their names in the plain model, with what LoRA learnt in them.

    Raises:
        ValueError: if what was learnt fits no weight.
    """
    plain, added = adapters(found)
    scale = scale_of(found) if added else 1.0
    return plain | {name: Merged(plain[name], down, up, scale) for name, (down, up) in added.items()}


def adapters(found: checkpoint.Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """The averaged weights of a run as they are without LoRA, and A and B of those that are adapted, as they lie.

    Raises:
        ValueError: if these fit no weight.
    """
    try:
        plain, added = split(found.tensors.get("ema", {}))
    except KeyError as error:
        raise ValueError(f"{found.path} is damaged: its LoRA lacks {error}") from error
    for name, (down, up) in added.items():
        shapes = [
            tuple(getattr(x, "shape", ())) for x in (down, up, plain.get(name))
        ]  # of an odd type: its name
        if product_shape(*shapes[:2]) is None or product_shape(*shapes[:2]) != shapes[2]:
            raise ValueError(f"{found.path} does not fit the model: LoRA of {name} is of another shape")
        if down.dtype != up.dtype or not up.dtype.is_floating_point:
            raise ValueError(
                f"{found.path} does not fit the model: LoRA of {name} is of {down.dtype} and {up.dtype}"
            )
    return plain, added


def scale_of(found: checkpoint.Checkpoint) -> float:
    """Factor on B A of a run with LoRA.

    Raises:
        ValueError: if its configuration does not say it.
    """
    section = found.part("config").get("lora")
    if not isinstance(section, dict):
        raise ValueError(f"{found.path} is damaged: it holds LoRA, but its configuration has no such section")
    return LoRA(rank=section.get("rank", 0), alpha=section.get("alpha")).scale


def set_top_k(config: dict[str, Any], top_k: int, file: Path) -> None:
    """Change in the configuration of a checkpoint how many experts a token takes.

    Raises:
        ValueError: if its router does not choose by it when sampling.
    """
    if (router := by_top_k(config)) is None:
        raise ValueError(f"top_k cannot be changed: the router of {file} does not choose by it when sampling")
    router["top_k"] = top_k


def by_top_k(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The section of the router whose `top_k` is what a token takes when sampling, too; None if there is none."""
    router = config["router"] or {}
    router = router.get("router") or router  # the one within timestep's segments
    if not router.get("top_k") or not getattr(find_target(router)[0], "top_k_in_sampling", False):
        return None
    return router


def admitted(
    found: checkpoint.Checkpoint, trusted: trust.Trust = False, *others: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of a checkpoint (`SECTIONS`, others and the share "given"), and what it knows of its data.

    Raises:
        ValueError: if either holds what a stranger's may not, see `ditmoe.config.trust`.
    """
    written = trust.admit(found.part("config"), (*SECTIONS, *others), found.path, trusted)
    config = renamed(written, adapters(found)[0])
    config["given"] = found.part("config").get("given", 0)
    check_number(f"given of {found.path}", config["given"], 0, 1)
    data_facts = found.part("facts")
    check_known(found.plain["facts"], f"the facts of {found.path}")
    if type(data_facts) is not dict:
        raise ValueError(f"the facts of {found.path} must be a dict, got {type(data_facts).__name__}")
    return config, data_facts


def make_checked(
    make: Callable[[], Net],
    config: Mapping[str, Any],
    modality: Modality,
    weights: Mapping[str, Any],
    file: Path,
    trusted: trust.Trust = False,
) -> Net:
    """The model of a configuration on the meta device: shapes without memory, of which the weights fit.

    Args:
        make: makes it, or a module that has it as its `net`.

    Raises:
        ValueError: one line, if they do not, or if the model would exhaust the machine.
    """
    check_depth(config["model"], weights)
    check_shape(modality.sample_shape, math.inf if trusted is True else LARGEST_SAMPLE)
    with torch.device("meta"), bounded(len(weights)):
        made = make()
    model: Any = getattr(made, "net", made)
    check_fit(model, weights, file)
    if trusted is not True:
        check_work(model, modality.sample_shape, Sampling.of(dict(config)).steps)
    return made


def materialise(model: Net, make: Callable[[], Net], device: torch.device | str) -> Net:
    """A model on the meta device with memory for its weights, which are to be loaded.

    Buffers that are in no state dict get their values from the constructor alone: a router that has such is made
    again. None of ditmoe's has.
    """
    saved = model.state_dict()
    if all(name in saved for name, _ in model.named_buffers()):
        return model.to_empty(device=device)
    return make().to(device)


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Any], file: Path) -> None:
    """Load weights that must fit exactly, and be finite, from the disk one at a time; the error names the first that
    does not.
    """
    check_fit(model, weights, file)
    for name, value in model.state_dict().items():
        checked(value.copy_(in_memory(weights[name])), name, file)


def checked(value: torch.Tensor, name: str, file: Path) -> torch.Tensor:
    """A weight of a file.

    Raises:
        ValueError: unless all its numbers are finite.
    """
    if value.is_floating_point() and not value.isfinite().all():
        raise ValueError(f"{file} holds numbers that are not finite: {name}")
    return value
