"""Which expert works on which token, read from the routings that a model returns, without hooks in the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.analysis.probe import Probe, shown
from ditmoe.diffusion import Process
from ditmoe.model import DiTMoE
from ditmoe.moe import Routing
from ditmoe.nn import Layout


@dataclass(frozen=True)
class Record:
    """The routing of all passes: one row per token, in the same order in all layers.

    Attributes:
        sample, time: indices of the token's sample and time bin.
        cell: the token's coordinates in its sample's grid.
        grid: the size of that grid.
        chosen: 1 where the expert works on the token, or its share of it.
        loss: of each sample in each time bin.
    """

    sample: Int[np.ndarray, " T"]
    time: Int[np.ndarray, " T"]
    cell: Int[np.ndarray, "T A"]
    grid: Int[np.ndarray, "T A"]
    chosen: Float[np.ndarray, "T L E"]
    loss: Float[np.ndarray, "S B"]

    @property
    def same_grid(self) -> bool:
        """Whether all samples have the same grid."""
        return bool((self.grid == self.grid[0]).all())


@torch.no_grad()
def take_record(
    model: DiTMoE, probe: Probe, process: Process, size: int, on_pass: Callable[[], object] = lambda: None
) -> Record:
    """Evaluate a model on a probe and record its routing.

    Args:
        size: batch size.
        on_pass: called after each forward pass.

    Raises:
        ValueError: if the model has no layers with experts, or its losses are not finite.
    """
    if not model.mixtures:
        raise ValueError(
            "the model must have layers with experts, got a dense one: there is nothing to analyse"
        )
    device = next(model.parameters()).device
    parts: list[list[np.ndarray]] = []
    loss = np.zeros((len(probe.x0), probe.bins))
    for one in shown(probe, process, size, device, on_pass):
        output, routings = model(one.x, one.t, one.asked)
        loss[one.rows.numpy(), one.number] = one.loss(output).cpu().numpy()
        rows = noted(routings, model.tokens.layout(one.x))
        rows[0] = one.rows.numpy()[rows[0]]
        parts.append([rows[0], np.full(len(rows[0]), one.number), *rows[1:]])
    if not np.isfinite(loss).all():
        raise ValueError("the model's predictions must be finite numbers, got NaN or infinity")
    sample, time, cell, grid, chosen = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Record(sample, time, cell, grid, chosen, loss)


def noted(routings: Sequence[Routing], layout: Layout) -> list[Any]:
    """The columns of `Record` from `sample` to `chosen`, without `time`, for the tokens of a batch, packed or not."""
    sample = layout.sample.cpu().numpy()
    cells = layout.cells if layout.packed else layout.cells.repeat(len(layout.grids), 1)
    grid = np.array(layout.grids)[sample]
    chosen = torch.stack([routing.chosen.to(torch.float16) for routing in routings], dim=1)
    return [sample, cells.cpu().numpy(), grid, chosen.cpu().numpy()]


def check_alike(model: DiTMoE) -> Tensor:
    """The number of experts of each layer.

    Raises:
        ValueError: if layers differ.
    """
    numbers = torch.tensor([router.num_experts for router in model.routers])
    if len(numbers.unique()) > 1:
        raise ValueError(f"all layers must have equally many experts, got {numbers.tolist()}")
    return numbers
