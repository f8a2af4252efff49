"""What is said of a class: a loss that is known where the model is, and how far its shapes lie apart."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.quality.cloud_classes import TIMES, apart, losses
from ditmoe.diffusion import FlowMatching


def test_the_loss_of_a_model_that_predicts_nothing_is_the_square_of_the_target() -> None:
    """A velocity is noise less data, whose mean square is 1 + 2^2 for data that are 2."""
    seen: list[tuple] = []

    def model(x: torch.Tensor, t: torch.Tensor, asked) -> tuple:
        seen.append((len(x), float(t[0]), asked.values["label"].tolist()))
        return torch.zeros_like(x), []

    modality = SimpleNamespace(encode=lambda data: torch.from_numpy(data).float())
    restored = SimpleNamespace(model=model, modality=modality, process=FlowMatching("velocity"))
    clouds = [np.full((4000, 3), 2.0)] * 2
    found = losses(restored, clouds, 3, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert found == pytest.approx([5.0] * len(TIMES), abs=0.1)
    assert seen == [(6, float(time), [3] * 6) for time in TIMES]  # two shapes, each with three noises


def test_shapes_of_a_class_lie_apart_by_the_mean_of_all_pairs() -> None:
    at = [np.zeros((5, 3)), np.tile([1.0, 0, 0], (5, 1)), np.zeros((5, 3))]
    assert apart(at) == pytest.approx(1000 * (2 + 0 + 2) / 3)
    assert np.isnan(apart(at[:1]))
