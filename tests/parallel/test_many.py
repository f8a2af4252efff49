"""Many processes do what one does: the same losses on every mesh, the same checkpoints, the same samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from ditmoe import checkpoint
from ditmoe.config.restore import restore
from ditmoe.distributed import launch, local
from ditmoe.inference import draw_from
from ditmoe.parallel.mesh import sizes
from ditmoe.training.resume import resume
from tests.many import together
from tests.modalities.latent.test_packing import native_run
from tests.training.test_trainer import trainer

RUN = ["trainer.batch_size=4", "trainer.accumulate=2", "trainer.precision=fp32", "trainer.clip=0.15"]
RUN += ["trainer.zclip=2.5", "router.z_loss=0.1", "router.noise=1.0", "router.renormalize=true"]
STEPS = 3
MESHES = {2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)], 4: [(2, 2, 1), (2, 1, 2), (1, 2, 2)]}


def on(mesh: tuple[int, int, int]) -> list[str]:
    return [f"mesh.{name}={n}" for name, n in zip(("replicate", "shard", "expert"), mesh, strict=True)]


def curve(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def trained(folder: Path, steps: int, options: list[str]) -> None:
    """A run up to `steps`, which goes on from what is in the folder."""
    run, settings = trainer(folder, f"trainer.steps={steps}", *RUN, *options)
    if checkpoint.exists(folder):
        resume(run, settings)
    run.run()
    if (world := launch.world()) > 1:
        held = sum(local(p).numel() for p in (*run.model.parameters(), *run.ema.model.parameters()))
        whole = sum(p.numel() for p in (*run.model.parameters(), *run.ema.model.parameters()))
        assert all(isinstance(p, DTensor) for p in run.ema.model.parameters())
        assert held < 1.1 * whole * run.mesh.replicate / world + 100, "state is not spread"


def all_meshes(folder: Path, num: int) -> None:
    extra = {2: ["trainer.recompute=true"], 1: ["trainer.background_save=true", "trainer.save_every=1"]}
    for mesh in MESHES[num]:
        trained(folder / f"{num}-{mesh}", STEPS, [*on(mesh), *extra[mesh[1]]])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, and one on every mesh."""
    folder = tmp_path_factory.mktemp("runs")
    trained(folder / "one", STEPS, [])
    for num in MESHES:
        together(all_meshes, num, folder, num)
    return folder


@pytest.mark.parametrize("mesh", [mesh for meshes in MESHES.values() for mesh in meshes])
def test_losses_of_many_are_those_of_one(runs: Path, mesh: tuple[int, int, int]) -> None:
    world = int(np.prod(mesh))
    one, many = curve(runs / "one"), curve(runs / f"{world}-{mesh}")
    assert len(one) == len(many) == STEPS
    for a, b in zip(one, many, strict=True):
        for name in ("loss", "balance", "z", "gradient_norm", "experts_per_token/layer00", "entropy/layer01"):
            assert b[name] == pytest.approx(a[name], abs=1e-5), name
        shares = [name for name in a if name.startswith("load/")]
        assert [b[name] for name in shares] == pytest.approx([a[name] for name in shares], abs=1e-3)


def test_checkpoints_of_many_hold_what_that_of_one_holds(runs: Path) -> None:
    one = checkpoint.load(runs / "one")
    for folder in runs.glob("[24]-*"):
        many = checkpoint.load(folder)
        for part in ("model", "ema"):
            assert one[part].keys() == many[part].keys()
            for name, value in one[part].items():
                assert torch.allclose(many[part][name], value, atol=1e-4), (folder.name, part, name)
        assert many["optimizer"]["state"].keys() == one["optimizer"]["state"].keys()
        files = [f.name for f in (folder / "checkpoints" / f"step-{STEPS:07d}" / "ema").iterdir()]
        assert len(files) == int(folder.name[0])
        assert {f.suffix for f in (folder / "checkpoints").rglob("*") if f.is_file()} == {
            ".json",
            ".safetensors",
        }


def test_a_run_goes_on_with_any_number_of_processes(runs: Path, tmp_path: Path) -> None:
    trained(tmp_path, 1, [])
    together(trained, 4, tmp_path, 2, on((1, 2, 2)))
    together(trained, 2, tmp_path, 3, on((2, 1, 1)))
    trained(tmp_path, 4, [])
    assert [r["step"] for r in curve(tmp_path)] == [1, 2, 3, 4]
    for a, b in zip(curve(runs / "one"), curve(tmp_path), strict=False):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)


def a_damaged_piece(folder: Path) -> int:
    return checkpoint.find(folder, ranks=launch.ranks()).plain["step"]


def test_a_damaged_piece_gives_way_to_the_checkpoint_before(tmp_path: Path) -> None:
    together(trained, 2, tmp_path, 2, [*on((1, 2, 1)), "trainer.save_every=1"])
    piece = max((tmp_path / "checkpoints" / "step-0000002" / "model").iterdir())
    content = bytearray(piece.read_bytes())
    content[-1] ^= 1
    piece.write_bytes(content)
    assert together(a_damaged_piece, 2, tmp_path) == 1
    piece.unlink()
    assert together(a_damaged_piece, 2, tmp_path) == a_damaged_piece(tmp_path) == 1


def drawn(folder: Path) -> np.ndarray | None:
    restored = restore(folder)
    samples = draw_from(
        restored, restored.model.conditioning.ask(13, restored.modality.classes), batch_size=5
    )
    return None if samples is None else samples.data


def test_samples_of_many_are_those_of_one_to_the_bit(runs: Path) -> None:
    folder = runs / "4-(1, 2, 2)"
    one = drawn(folder)
    assert len(one) == 13
    assert np.array_equal(together(drawn, 4, folder), one)  # of three batches: one of them has none


def test_sizes_that_do_not_fit_are_named() -> None:
    assert sizes(8, 1, None, 2) == (1, 4, 2)
    assert sizes(8, None, 1, 4) == (2, 1, 4)
    for given, words in {
        (8, 1, 3, 1): "the number of processes that torchrun started, 8, got 1 x 3 x 1",
        (2, 1, None, 4): "8|2, got 1 x . x 4",
        (2, None, None, 1): "may be null",
        (2, 1, 0, 1): "mesh.shard must be at least 1",
    }.items():
        with pytest.raises(ValueError, match=words):
            sizes(*given)


NATIVE = ["modality.rows=4", "trainer.log_every=1", "trainer.accumulate=2", *RUN[2:]]
MODELS = {"debug": [], "masked": ["model=masked", "model.hidden_size=32", "model.depth=2", "model.moe_layers=null",
                                  "model.rope=true", "model.mask_ratio=0.5", "model.decoder_window=2"]}  # fmt: skip


def trained_natively(folder: Path, steps: int, name: str, options: list[str]) -> int:
    """Samples of the next batch, those of all processes."""
    run, settings = native_run(folder, "image", *NATIVE, *MODELS[name], *options, f"trainer.steps={steps}")
    if checkpoint.exists(folder):
        resume(run, settings)
    run.run()
    return run.batches(2 * steps).size


@pytest.mark.parametrize("name", list(MODELS))
def test_many_share_the_packed_rows_of_one(name: str, tmp_path: Path) -> None:
    size = trained_natively(tmp_path / "one", 3, name, [])
    together(trained_natively, 2, tmp_path / "many", 1, name, on((1, 1, 2)))
    assert together(trained_natively, 4, tmp_path / "many", 3, name, on((2, 2, 1))) == size > 4
    one, many = curve(tmp_path / "one"), curve(tmp_path / "many")
    assert len(one) == len(many) == 3
    for a, b in zip(one, many, strict=True):
        for key in ("loss", "balance", "z", "gradient_norm", "experts_per_token/layer00", "entropy/layer01"):
            assert b[key] == pytest.approx(a[key], abs=1e-5), key


REFUSED = {
    "trainer.batch_size must be a multiple of the 2 processes, got 3": ["trainer.batch_size=3"],
    "modality.rows must be a multiple of the 2 processes, got 1": ["image"],
    "mesh.expert must divide the 3 experts of a layer, got 2": ["mesh.expert=2", "router.num_experts=3"],
    "mesh.expert must be 1 for the router DiffMoE": ["mesh.expert=2", "router=diff_moe"],
    "must be the number of processes that torchrun started, 2": ["mesh.expert=4"],
}


def all_refused(folder: Path) -> None:
    for words, options in REFUSED.items():
        start = native_run if options == ["image"] else trainer
        with pytest.raises(ValueError, match=words):
            start(folder, *options)


def test_what_cannot_be_spread_is_named(tmp_path: Path) -> None:
    together(all_refused, 2, tmp_path)
