"""Which expert works on which token, noted from the routings that a model returns; nothing is put into the model."""

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
    """The choices of all passes, a row per token; the rows of tokens are the same in all layers.

    Attributes:
        sample, time: of each token, the number of its sample and of its bin of time.
        cell: where in its sample's grid it lies, along each axis.
        grid: of its sample, cells along each axis.
        chosen: by layer and expert, 1 where it works on the token, or its share of it.
        loss: of each sample in each bin.
    """

    sample: Int[np.ndarray, " T"]
    time: Int[np.ndarray, " T"]
    cell: Int[np.ndarray, "T A"]
    grid: Int[np.ndarray, "T A"]
    chosen: Float[np.ndarray, "T L E"]
    loss: Float[np.ndarray, "S B"]

    @property
    def same_grid(self) -> bool:
        """Whether all samples have one."""
        return bool((self.grid == self.grid[0]).all())


@torch.no_grad()
def take_record(
    model: DiTMoE, probe: Probe, process: Process, size: int, on_pass: Callable[[], object] = lambda: None
) -> Record:
    """Show a model all of a probe and note what its routers do.

    Raises:
        ValueError: if it has no layers with experts, or its losses are not finite.
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
        raise ValueError("the model's predictions must be finite numbers: it was trained to none")
    sample, time, cell, grid, chosen = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Record(sample, time, cell, grid, chosen, loss)


def noted(routings: Sequence[Routing], layout: Layout) -> list[Any]:
    """Of each token of a batch its sample, cell, grid, and what its routings chose, packed or not."""
    sample = layout.sample.cpu().numpy()
    cells = layout.cells if layout.packed else layout.cells.repeat(len(layout.grids), 1)
    grid = np.array(layout.grids)[sample]
    chosen = torch.stack([routing.chosen.to(torch.float16) for routing in routings], dim=1)
    return [sample, cells.cpu().numpy(), grid, chosen.cpu().numpy()]


def check_alike(model: DiTMoE) -> Tensor:
    """Numbers of experts of the layers, which must be one number.

    Raises:
        ValueError: if they are not.
    """
    numbers = torch.tensor([router.num_experts for router in model.routers])
    if len(numbers.unique()) > 1:
        raise ValueError(f"all layers must have equally many experts, got {numbers.tolist()}")
    return numbers
