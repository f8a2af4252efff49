"""Low-memory sampling: quantised weights, experts offloaded to the host."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditmoe.model.backbone import DiTMoE
from ditmoe.moe import Experts, Router
from ditmoe.moe.expert_memory import OffloadedExperts, QuantizedExperts, Traffic
from ditmoe.nn.quantized import FORMATS, Quantized, QuantizedLinear, nbytes
from ditmoe.outside import check_number

GIB = 2**30
MOST_CACHE = 10_000
"""GiB."""


@dataclass(frozen=True)
class LowMemory:
    """How to store block weights while sampling; routers, biases and weights outside of blocks are unaffected.

    Args:
        weights: "bf16" or "int8" for the routed experts' matrices and all linear layers (`ditmoe.nn.quantized`); None:
            as trained.
        offload: "experts" keeps these on the host and fetches those that are chosen; None: all are on the device.
        expert_cache: with `offload`, most GiB of experts on the device, divided equally among layers.

    Raises:
        ValueError: one line, for anything else.
    """

    weights: str | None = None
    offload: str | None = None
    expert_cache: float = 4.0

    def __post_init__(self) -> None:
        if self.weights is not None and self.weights not in [*FORMATS]:
            raise ValueError(f"weights must be {' or '.join(FORMATS)}, got {self.weights!r}")
        if self.offload not in (None, "experts"):
            raise ValueError(f"offload must be experts, got {self.offload!r}")
        check_number("expert_cache", self.expert_cache, above=0, most=MOST_CACHE)
        if self.offload is None and self.expert_cache != LowMemory.expert_cache:
            raise ValueError("expert_cache is said of experts on the host: it needs offload=experts")

    def check_room(self, model: DiTMoE, width: int | None = None) -> None:
        """Check that the cache has room for one expert per layer of a model, which may be on the meta device.

        Args:
            width: bytes per unquantised weight; None: as in the model.

        Raises:
            ValueError: one line, if it has not.
        """
        layers = [module for module in model.modules() if isinstance(module, Experts)]
        if self.offload is None or not layers:
            return
        size = max(
            sum(nbytes(w.shape[1:], self.weights, width or w.element_size()) for w in (layer.up, layer.down))
            for layer in layers
        )
        if int(self.expert_cache * GIB) // len(layers) < size:
            raise ValueError(
                f"expert_cache must have room for an expert of each layer, {len(layers) * size / GIB:.2g} GiB, got "
                f"{self.expert_cache:g}"
            )

    def emptied(self, model: DiTMoE) -> DiTMoE:
        """Remove, in place, the weights that are to be stored differently, for `fill`.

        Raises:
            ValueError: if the cache has no room for one expert per layer.
        """
        self.check_room(model)
        for block in model.blocks:
            for owner, name, module in list(_layers(block)):
                if isinstance(module, Experts) and (self.weights or self.offload):
                    module.up = module.down = None  # type: ignore[assignment]
                elif isinstance(module, nn.Linear) and self.weights:
                    setattr(owner, name, QuantizedLinear(module.bias))
        return model

    @torch.no_grad()
    def fill(self, model: DiTMoE, read: Callable[[str], Tensor], device: torch.device) -> Traffic | None:
        """Read the weights of an emptied model one at a time, and store them as configured.

        Args:
            read: returns a weight by its name in the original model.
            device: of the rest of the model.

        Returns:
            If experts are offloaded, the traffic counters, starting now.
        """
        traffic = Traffic(room=int(self.expert_cache * GIB)) if self.offload else None
        layers = sum(isinstance(module, Experts) for module in model.modules())
        for path, module in list(model.named_modules()):
            if isinstance(module, QuantizedLinear):
                module.set_weight(Quantized.of(read(f"{path}.weight"), self.weights).on(device))
            elif isinstance(module, Experts) and module.up is None:
                up, down = (Quantized.of(read(f"{path}.{name}"), self.weights) for name in ("up", "down"))
                if traffic is None:
                    module.store = QuantizedExperts(up.on(device), down.on(device))
                    continue
                if device.type == "cuda":
                    up, down = up.pinned(), down.pinned()
                module.store = OffloadedExperts(up, down, traffic.room // layers, traffic)
        return traffic


def _layers(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Owner, name and module of all submodules, except of routers, which stay in float32."""
    for name, child in module.named_children():
        if not isinstance(child, Router):
            yield module, name, child
            yield from _layers(child)


def num_parameters(model: nn.Module) -> int:
    """The number of learnt parameters, however they are stored."""
    kept: list[Any] = []
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            kept.append(module.weight)
        elif isinstance(module, QuantizedExperts | OffloadedExperts):
            kept += module.matrices()
    return sum(math.prod(p.shape) for p in (*model.parameters(), *kept))
