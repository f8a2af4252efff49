"""Restores a model and its modality from a checkpoint, ready to sample."""

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
"""Sections of a checkpoint's configuration that sampling needs."""


@dataclass(frozen=True)
class Restored:
    """The content of a checkpoint, ready to sample.

    Attributes:
        step: of the checkpoint.
        folder: of the run.
        traffic: counters of experts kept in host memory; None if none are.
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
        """What the model predicts, to compare it with another model's."""
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
        top_k: experts per token, if other than in training.
        device: of the model; None chooses one.
        trusted: paths and hub names that the checkpoint may open, see `ditmoe.config.trust`.
        memory: how the weights are stored; None keeps them unchanged.

    Raises:
        FileNotFoundError, ValueError: one line each, see `checkpoint.load`.
    """
    where = torch.device(device or own_device())
    return checkpoint.unless_dropped(
        Path(path), lambda: _restored(path, top_k, where, trusted, memory or LowMemory())
    )


def _restored(
    path: str | Path, top_k: int | None, device: torch.device, trusted: trust.Trust, memory: LowMemory
) -> Restored:
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
        model, traffic = _filled(planned, make_own, weights, found.path, device, memory)
    return Restored(model.eval(), modality, process, config, found.plain["step"], found.run, traffic)


def _filled(
    planned: DiTMoE,
    make_own: Callable[[], DiTMoE],
    weights: Mapping[str, Any],
    file: Path,
    device: torch.device,
    memory: LowMemory,
) -> tuple[DiTMoE, Traffic | None]:
    """The model with its weights, each read from disk directly to the place where it is kept."""
    model = materialise(memory.emptied(planned), lambda: memory.emptied(make_own()), device)
    own = {name: weights[name] for name in model.state_dict()}
    load_weights(model, own, file)

    def read(name: str) -> torch.Tensor:
        return checked(in_memory(weights[name]), name, file)

    return model, memory.fill(model, read, device)


@dataclass(frozen=True)
class Merged:
    """A weight with LoRA, merged when it is read.

    Attributes:
        plain: the weight W.
        down, up: LoRA's A and B.
        scale: factor on B A.
    """

    plain: Any
    down: Any
    up: Any
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.plain.shape)

    def read(self) -> torch.Tensor:
        """W + scale * B A, in the weight's type."""
        low = LowRank(in_memory(self.down), in_memory(self.up), self.scale)
        with torch.no_grad():
            return low(in_memory(self.plain))


def averaged(found: checkpoint.Checkpoint) -> dict[str, Any]:
    """The averaged weights of a run by their names in the plain model, with LoRA merged.

    Raises:
        ValueError: if LoRA does not fit the weights.
    """
    plain, added = adapters(found)
    scale = scale_of(found) if added else 1.0
    return plain | {name: Merged(plain[name], down, up, scale) for name, (down, up) in added.items()}


def adapters(found: checkpoint.Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """The averaged weights of a run without LoRA, and A and B of the adapted ones; all of them not yet read.

    Raises:
        ValueError: if A and B do not fit the weights.
    """
    try:
        plain, added = split(found.tensors.get("ema", {}))
    except KeyError as error:
        raise ValueError(f"{found.path} is damaged: its LoRA lacks {error}") from error
    except ValueError as error:
        raise ValueError(f"{found.path} is damaged: {error}") from error
    rank = _lora_of(found).rank if added else 0
    for name, (down, up) in added.items():
        shapes = [
            tuple(getattr(x, "shape", ())) for x in (down, up, plain.get(name))
        ]  # a tensor of an unsupported type is a string
        if product_shape(*shapes[:2]) is None or product_shape(*shapes[:2]) != shapes[2]:
            raise ValueError(f"{found.path} does not fit the model: LoRA of {name} has another shape")
        if down.shape[-2] != rank:
            raise ValueError(
                f"{found.path} is damaged: LoRA of {name} must have the rank of lora.rank, {rank}, got "
                f"{down.shape[-2]}"
            )
        if down.dtype != up.dtype or not up.dtype.is_floating_point:
            raise ValueError(
                f"{found.path} does not fit the model: LoRA of {name} must be of one floating-point type, got "
                f"{down.dtype} and {up.dtype}"
            )
    return plain, added


def scale_of(found: checkpoint.Checkpoint) -> float:
    """Factor on B A of a run with LoRA.

    Raises:
        ValueError: if its configuration has no section "lora".
    """
    return _lora_of(found).scale


def _lora_of(found: checkpoint.Checkpoint) -> LoRA:
    """Rank and alpha of a run with LoRA; its targets are those of its tensors."""
    section = found.part("config").get("lora")
    if not isinstance(section, dict):
        raise ValueError(f"{found.path} is damaged: it holds LoRA, but its configuration has no section lora")
    return LoRA(rank=section.get("rank", 0), alpha=section.get("alpha"))


def set_top_k(config: dict[str, Any], top_k: int, file: Path) -> None:
    """Change the number of experts per token in the configuration of a checkpoint.

    Raises:
        ValueError: if its router does not use top_k in sampling.
    """
    if (router := by_top_k(config)) is None:
        raise ValueError(f"top_k cannot be changed: the router of {file} does not use it in sampling")
    router["top_k"] = top_k


def by_top_k(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The section of the router, if its `top_k` sets the experts per token in sampling, too; else None."""
    router = config["router"] or {}
    router = router.get("router") or router  # the router within the segments of `timestep`
    if not router.get("top_k") or not getattr(find_target(router)[0], "top_k_in_sampling", False):
        return None
    return router


def admitted(
    found: checkpoint.Checkpoint, trusted: trust.Trust = False, *others: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checked configuration of a checkpoint (`SECTIONS`, others and the share "given"), and its data facts.

    Args:
        others: further sections.

    Raises:
        ValueError: if either holds what is not allowed in untrusted ones, see `ditmoe.config.trust`.
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
    """Build the model of a configuration on the meta device, which takes no memory, and check that the weights fit.

    Args:
        make: builds the model, or a module with the model as its `net`.

    Raises:
        ValueError: one line, if the weights do not fit, or the model would exhaust the machine.
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
    """Allocate memory for the weights of a model on the meta device, which are to be loaded next.

    Buffers outside of the state dict get their values only in the constructor, so a model that has any is built again;
    none of ditmoe's own routers does.
    """
    saved = model.state_dict()
    if all(name in saved for name, _ in model.named_buffers()):
        return model.to_empty(device=device)
    return make().to(device)


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Any], file: Path) -> None:
    """Load weights from disk, one at a time.

    Raises:
        ValueError: naming the first weight that does not fit exactly or is not finite.
    """
    check_fit(model, weights, file)
    for name, value in model.state_dict().items():
        checked(value.copy_(in_memory(weights[name])), name, file)


def checked(value: torch.Tensor, name: str, file: Path) -> torch.Tensor:
    """The same weight, checked to be finite.

    Raises:
        ValueError: naming the file and the weight otherwise.
    """
    wide = value.dtype == torch.float64
    if value.is_floating_point() and not (value.float() if wide else value).isfinite().all():
        raise ValueError(f"{file} holds numbers that are not finite{' in float32' if wide else ''}: {name}")
    return value
