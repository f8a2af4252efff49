"""Training with a time for each frame or token: what is drawn, by whom, and that every modality trains with it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ditmoe.conditioning import ClassLabel
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.diffusion import FlowMatching, torch_generator
from ditmoe.modality import Modality
from ditmoe.parallel import Mesh
from ditmoe.train import make_trainer
from ditmoe.training import Trainer
from ditmoe.training.batches import Batches
from ditmoe.training.resume import resume

TINY = [
    "model=debug",
    "trainer.batch_size=4",
    "trainer.preview_every=0",
    "trainer.steps=3",
    "trainer.log_every=1",
]
KINDS = {
    "pointcloud": ["modality=pointcloud", "modality.num_points=64", "modality.tokens.resolution=8"],
    "occupied": ["modality=pointcloud", "modality.num_points=64", "modality.tokens.kept=occupied"],
    "image": ["modality=image", "modality.size=[16,24]", "modality.codec.channels=3"],
    "video": ["modality=video", "modality.frames=5", "modality.size=[16,16]", "modality.codec.channels=4",
              "modality.codec.steps=0", "modality.data.workers=0"],
    "native image": ["modality=image", "modality.codec.channels=3", "modality.native=true", "modality.budget=100",
                     "modality.rows=2", "process.tokens=16"],
    "native video": ["modality=video", "modality.codec.channels=4", "modality.codec.steps=0", "modality.frames=9",
                     "modality.data.workers=0", "modality.native=true", "modality.budget=300", "modality.rows=2",
                     "process.tokens=16"],
}  # fmt: skip
EVERY = pytest.mark.parametrize("kind", list(KINDS))


def configured(kind: str, *more: str) -> dict:
    return composed("train", [*TINY, *KINDS[kind], *more])


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    """Each made once: some train a codec."""
    return {kind: build.make_modality(configured(kind)) for kind in KINDS}


class Part(Mesh):
    """One of several processes that are not there: it tells what is its own."""

    def __init__(self, world: int, rank: int) -> None:
        super().__init__()
        self.world, self.rank = world, rank


def batches(kind: str, modalities: dict[str, Modality], time_per: str, mesh: Mesh | None = None) -> Batches:
    modality = modalities[kind]
    process = FlowMatching(tokens=16)
    read = ClassLabel(8, len(modality.classes)).read
    return Batches(modality, modality.tokens(48), process, mesh or Mesh(), 7, 4, 0.1, read, time_per)


@EVERY
def test_a_time_per_sample_is_drawn_as_ever(kind: str, modalities: dict[str, Modality]) -> None:
    made = batches(kind, modalities, "sample")
    batch, process = made(3), made.process
    if batch.layout is None:
        generator = torch_generator("train", 7, 3)
        torch.randn(batch.x0.shape, generator=generator)
        size = len(batch.x0)
        t = process.draw_times(size, generator)
        lengths = torch.tensor(made.tokens.grid(batch.x0)).prod()
        dropped = torch.rand(size, generator=generator) < 0.1
        assert torch.equal(batch.t, process.shifted(t, lengths))
        assert torch.equal(batch.asked.null, dropped)
        assert torch.equal(batch.each.flatten(), batch.t)
    else:
        assert len(batch.t) == len(batch.asked)
        assert torch.equal(batch.each[:, 0], batch.t[batch.layout.sample])


@pytest.mark.parametrize("time_per", ["frame", "token"])
@EVERY
def test_each_frame_or_token_has_a_time_of_its_own(
    kind: str, time_per: str, modalities: dict[str, Modality]
) -> None:
    made = batches(kind, modalities, time_per)
    batch = made(3)
    if batch.layout is None:
        grid = made.tokens.grid(batch.x0)
        number = grid[0] if time_per == "frame" else torch.Size(grid).numel()
        assert batch.t.shape == (4, number)
        assert len(batch.t.unique()) == 4 * number
        assert torch.equal(batch.each, made.tokens.sample_times(batch.t, batch.x0))
    else:
        layout = batch.layout
        cells, sample = layout.cells, layout.sample
        assert batch.t.shape == (1, len(batch.x0))
        own = torch.stack([sample, cells[:, 0]], dim=1) if time_per == "frame" else torch.arange(len(sample))
        number = len(own.unique(dim=0))
        assert len(batch.t.unique()) == number
        assert (
            len(torch.cat([own.view(len(sample), -1).double(), batch.t.double().T], 1).unique(dim=0))
            == number
        )
        assert torch.equal(batch.each[:, 0], batch.t[0])
    assert torch.equal(batch.noise, batches(kind, modalities, "sample")(3).noise)
    again = made(3)
    assert torch.equal(again.t, batch.t)
    assert not torch.equal(made(4).t.flatten()[:4], batch.t.flatten()[:4])


@pytest.mark.parametrize("time_per", ["sample", "frame", "token"])
@EVERY
def test_the_times_of_all_ranks_are_those_of_one(
    kind: str, time_per: str, modalities: dict[str, Modality]
) -> None:
    whole = batches(kind, modalities, time_per)(5)
    parts = [batches(kind, modalities, time_per, Part(2, rank))(5) for rank in range(2)]
    assert torch.equal(torch.cat([part.t for part in parts], dim=-1 if whole.t.shape[0] == 1 else 0), whole.t)
    assert torch.equal(torch.cat([part.noise for part in parts]), whole.noise)
    # A codec's products, and so voxels, may be rounded by the batch's size.
    if kind not in ("pointcloud", "occupied"):
        assert torch.equal(torch.cat([part.each for part in parts]), whole.each)


def run(
    folder: Path, kind: str, modalities: dict[str, Modality], *more: str
) -> tuple[Trainer, dict[str, Any]]:
    settings = configured(kind, *more)
    return make_trainer(settings, modalities[kind], folder), settings


@pytest.mark.parametrize("time_per", ["frame", "token"])
@EVERY
def test_every_modality_trains_and_resumes_bit_for_bit(
    kind: str, time_per: str, modalities: dict[str, Modality], tmp_path: Path
) -> None:
    router = "timestep" if time_per == "token" else "diff_moe"
    options = f"trainer.time_per={time_per}", f"router={router}"
    whole, _ = run(tmp_path / "whole", kind, modalities, *options)
    whole.run()
    assert whole.guard.streak == 0
    first, settings = run(tmp_path / "parts", kind, modalities, *options)
    first.options = replace(first.options, steps=2)
    first.run()
    second, _ = run(tmp_path / "parts", kind, modalities, *options)
    resume(second, settings)
    second.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


@pytest.mark.parametrize("time_per", ["frame", "token"])
def test_masked_training_takes_them_too(
    time_per: str, modalities: dict[str, Modality], tmp_path: Path
) -> None:
    masked = [
        "model=masked",
        "model.hidden_size=48",
        "model.depth=2",
        "model.moe_layers=[1]",
        "model.mask_ratio=0.5",
    ]
    trainer, _ = run(
        tmp_path, "video", modalities, *masked, "model.decoder_window=2", f"trainer.time_per={time_per}"
    )
    trainer.run()
    assert trainer.step == 3
    assert trainer.guard.streak == 0


def test_what_else_has_a_time_is_refused(modalities: dict[str, Modality], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^trainer.time_per must be one of sample, frame, token, got 'clip'$"
    ):
        run(tmp_path, "image", modalities, "trainer.time_per=clip")
