"""Expert ablation: the increase of the loss on held-out samples when an expert is dropped.

The dropped expert's assignments are removed and not replaced; the weights of the other assignments do not change. Both
models see the same samples with the same noise, so differences are paired; intervals are over samples.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from ditmoe.analysis.probe import Probe, shown
from ditmoe.analysis.statistics import mean_and_half
from ditmoe.diffusion import Process
from ditmoe.model import DiTMoE
from ditmoe.moe import MoE, Routing


@contextmanager
def dropped(mixture: MoE, expert: int | None) -> Iterator[None]:
    """Drop an expert of a layer within this context.

    Args:
        expert: its index; None: all experts of the layer.
    """

    def without(router: object, inputs: object, routing: Routing) -> Routing:
        return routing.without(expert)

    handle = mixture.router.register_forward_hook(without)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Drops:
    """Loss minus that of the whole model, for each sample in each bin; positive: the ablated model is worse.

    Attributes:
        expert: without one expert.
        layer: without all routed experts of a layer.
    """

    expert: Float[np.ndarray, "L E S B"]
    layer: Float[np.ndarray, "L S B"]

    def told(self) -> dict[str, object]:
        """Means over samples and bins with half widths of their 95 % intervals, for `analysis.json`."""
        found: dict[str, object] = {}
        for name, each in {"expert": self.expert, "layer": self.layer}.items():
            mean, half = mean_and_half(np.moveaxis(each.mean(-1), -1, 0))
            found[name] = mean.tolist()
            found[f"{name}_half"] = half.tolist()
        return found


def num_drops(model: DiTMoE) -> int:
    """Number of ablated models, each of which is evaluated on the whole probe."""
    return sum(router.num_experts + 1 for router in model.routers)


@torch.no_grad()
def drop_each(
    model: DiTMoE,
    probe: Probe,
    process: Process,
    size: int,
    whole: Float[np.ndarray, "S B"],
    on_pass: Callable[[], object] = lambda: None,
) -> Drops:
    """Drop each expert of each layer by itself, and all experts of each layer together.

    Args:
        size: batch size.
        whole: losses of the model with all experts.
        on_pass: called after each forward pass.
    """
    device = next(model.parameters()).device

    def losses() -> np.ndarray:
        found = np.zeros_like(whole)
        for one in shown(probe, process, size, device, on_pass):
            found[one.rows.numpy(), one.number] = one.loss(model(one.x, one.t, one.asked)[0]).cpu().numpy()
        return found

    experts, layers = [], []
    for mixture in model.mixtures:
        each = []
        for expert in (*range(mixture.router.num_experts), None):
            with dropped(mixture, expert):
                each.append(losses() - whole)
        experts.append(np.stack(each[:-1]))
        layers.append(each[-1])
    return Drops(np.stack(experts), np.stack(layers))
