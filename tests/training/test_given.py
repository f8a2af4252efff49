"""Training with parts given: what is drawn, by whom, what the model is told and what the loss counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ditmoe.conditioning import ClassLabel
from ditmoe.config import build
from ditmoe.diffusion import DDPM, FlowMatching
from ditmoe.modality import Modality
from ditmoe.training.batch import Batch
from ditmoe.training.batches import Batches, GivenShares
from ditmoe.training.given_masks import draw_places
from tests.training.test_time_per import KINDS, Part, configured

GRIDS = [kind for kind in KINDS if kind.endswith(("image", "video"))]
EVERY = pytest.mark.parametrize("kind", GRIDS)


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    return {kind: build.make_modality(configured(kind)) for kind in GRIDS}


def batches(modality: Modality, given: GivenShares, mesh=None, process=None, time_per="sample") -> Batches:
    read, process = ClassLabel(8, len(modality.classes)).read, process or FlowMatching(tokens=16)
    drawn = modality, modality.tokens(48), process, mesh or Part(1, 0), 7, 4, 0.1, read, time_per
    return Batches(*drawn, given)


def of_tokens(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each number counts, and its time."""
    counts = torch.ones_like(batch.x0) if batch.mask is None else batch.mask.expand_as(batch.x0)
    return counts.bool(), batch.each.expand_as(batch.x0)


@EVERY
@pytest.mark.parametrize("time_per", ["sample", "frame", "token"])
def test_what_is_given_is_clean_and_does_not_count(kind, time_per, modalities) -> None:
    modality = modalities[kind]
    for index in range(4):
        batch = batches(modality, GivenShares(1.0, 0.0), time_per=time_per)(index)
        counts, times = of_tokens(batch)
        assert not counts.all()
        assert counts.any()
        assert torch.equal(times == 0, ~counts)
        assert batch.share == counts.sum()
        process = FlowMatching()
        noised = process.corrupt(batch.x0, batch.noise, batch.each)
        assert torch.equal(noised[~counts], batch.x0[~counts])


@EVERY
@pytest.mark.parametrize("process", [FlowMatching(), DDPM()])
def test_what_is_hidden_is_noise_and_does_not_count(kind, process, modalities) -> None:
    batch = batches(modalities[kind], GivenShares(1.0, 1.0), process=process)(2)
    counts, times = of_tokens(batch)
    assert not counts.all()
    assert (times[~counts] == process.last).all()


@EVERY
def test_what_is_given_may_have_a_little_noise(kind, modalities) -> None:
    plain, noisy = (batches(modalities[kind], GivenShares(1.0, 0.0, share))(2) for share in (0.0, 1.0))
    counts, times = of_tokens(noisy)
    assert torch.equal(noisy.mask, plain.mask)
    assert torch.equal(times[counts], of_tokens(plain)[1][counts])
    assert ((times[~counts] > 0) & (times[~counts] <= 500)).all()
    each = [times[i][~counts[i]].unique() for i in range(len(times))]
    assert all(len(own) <= 1 for own in each)
    assert len(torch.cat(each).unique()) > 1


@EVERY
def test_without_a_share_batches_are_as_ever(kind, modalities) -> None:
    none, never = (batches(modalities[kind], given)(5) for given in (GivenShares(), GivenShares(1e-12)))
    assert none.mask is None
    assert torch.equal(none.x0, never.x0)
    assert torch.equal(none.noise, never.noise)
    counts, times = of_tokens(never)
    assert counts.all()
    assert torch.equal(times, none.each.expand_as(none.x0))


@EVERY
def test_processes_share_out_one_batch(kind, modalities) -> None:
    modality, shares = modalities[kind], GivenShares(0.7, 0.3)
    whole = batches(modality, shares)(3)
    halves = [batches(modality, shares, Part(2, rank))(3) for rank in (0, 1)]
    for name in ("x0", "each", "mask"):
        assert torch.equal(torch.cat([getattr(half, name).expand_as(half.x0) for half in halves]),
                           getattr(whole, name).expand_as(whole.x0))  # fmt: skip
    again = batches(modality, shares)(3)
    assert torch.equal(again.each, whole.each)
    assert not torch.equal(batches(modality, shares)(4).mask, replace(whole).mask)


def test_places_are_some_and_not_all() -> None:
    rng = np.random.default_rng(0)
    for per in ("frame", "token"):
        for grid in [(1, 1, 1), (2, 1, 1), (7, 4, 4), (1, 5, 3), (6, 6), (1, 9)]:
            kinds = [draw_places(grid, per, rng) for _ in range(200)]
            assert not any(places.all() for places in kinds)
            assert all(len(places) == (grid[0] if per == "frame" else np.prod(grid)) for places in kinds)
            if len(kinds[0]) > 1:
                assert np.mean([places.any() for places in kinds]) > 0.7
