"""Masked training: exactly so many tokens are dropped, what is dropped is not seen, and sampling drops nothing."""

from functools import partial
from pathlib import Path

import pytest
import torch

from ditmoe import DiTMoE, checkpoint
from ditmoe.config import build
from ditmoe.config.restore import restore
from ditmoe.cost import count
from ditmoe.inference import draw_from
from ditmoe.model import MaskedDiTMoE
from ditmoe.moe import ExpertRace, TokenChoice
from ditmoe.nn import Layout
from ditmoe.training.resume import resume
from modalities.image import LatentTokens
from modalities.pointcloud import PointVoxelTokens, VoxelTokens
from tests.cost.test_plan import real_multiply_adds
from tests.many import together
from tests.parallel.test_many import curve
from tests.training.test_trainer import config, same, trainer

CPU = torch.device("cpu")
token_choice = partial(TokenChoice, num_experts=4, top_k=2)
TOKENS = {
    "voxels": partial(VoxelTokens, 24, 16, 4, 3.0),
    "occupied voxels": partial(VoxelTokens, 24, 16, 4, 3.0, "occupied"),
    "points": partial(PointVoxelTokens, 24, 16, 4),
    "image": partial(LatentTokens, 24, 3),
}


def model(name: str, **options) -> MaskedDiTMoE:
    """With weights that are nowhere zero."""
    torch.manual_seed(0)
    options = {"router": token_choice, "decoder_depth": 2, "decoder_window": 2, **options}
    net = MaskedDiTMoE(TOKENS[name](), 3, 24, 2, 4, **options)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return net


def batch(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, *((3, 12, 8) if name == "image" else (70, 3)), generator=g)
    if name != "image":
        x[1] *= torch.tensor([1.0, 0.1, 0.01])  # flat: few patches
    return x, torch.tensor([5.0, 400.0, 900.0]), torch.tensor([0, 2, 3])


def found(net: DiTMoE, inputs: tuple) -> dict[str, torch.Tensor]:
    """Prediction, assignments and gradients."""
    torch.manual_seed(5)
    prediction, routings = net(*inputs)
    prediction.square().mean().backward()
    counts = {f"counts {i}": routing.counts for i, routing in enumerate(routings)}
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"prediction": prediction, **counts, **gradients}


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("name", TOKENS)
def test_dropping_nothing_changes_nothing(name: str, rope: bool) -> None:
    inputs = batch(name)
    whole = found(model(name, mask_ratio=0.5, rope=rope).eval(), inputs)
    assert same(whole, found(model(name, mask_ratio=0, rope=rope), inputs))
    as_those_kept = found(model(name, mask_ratio=1e-9, rope=rope), inputs)
    assert not as_those_kept.pop("mask_token").any()
    assert whole.keys() == as_those_kept.keys()
    for key, value in whole.items():
        assert torch.allclose(value, as_those_kept[key], atol=1e-5), key


@pytest.mark.parametrize("ratio", [(0.95, 0.99), (0.4, 0.9), (1, 1), (0, 1), (1, 0.5), 0.7])
def test_counts_are_exact(ratio: float | tuple[float, float]) -> None:
    net = model("voxels", mask_ratio=ratio)
    layout = Layout.pack([(4, 5, 5), (2, 2, 2), (3, 7, 1), (1, 1, 1)], CPU)
    occupied = torch.rand(sum(layout.lengths)) < torch.tensor([0.3, 1.0, 0.5, 0.0])[layout.sample]
    kept, counts = net.draw_kept(occupied, layout)
    assert torch.equal(kept, kept.unique())
    assert torch.bincount(layout.sample[kept], minlength=4).tolist() == counts
    for i in range(4):
        own = layout.sample == i
        of = [int((occupied == kind)[own].sum()) for kind in (True, False)]
        got = [int((occupied == kind)[kept][layout.sample[kept] == i].sum()) for kind in (True, False)]
        wanted = [round((1 - r) * n) for r, n in zip(net.mask_ratio, of, strict=True)]
        assert got == wanted if any(wanted) else got == ([1, 0] if of[0] else [0, 1])


def test_every_token_is_as_likely_as_its_like() -> None:
    net, layout = model("voxels", mask_ratio=[0.5, 0.75]), Layout.even((4, 4, 1), 2, CPU)
    occupied = torch.arange(32) % 4 == 0
    torch.manual_seed(0)
    times = torch.zeros(32)
    for _ in range(2000):
        times[net.draw_kept(occupied, layout)[0]] += 1
    assert torch.allclose(times / 2000, torch.where(occupied, 0.5, 0.25), atol=0.05)


@pytest.mark.parametrize("name", TOKENS)
@torch.no_grad()
def test_what_is_dropped_is_not_seen(name: str) -> None:
    net, (x, t, y) = model(name, mask_ratio=[0.5, 0.8]), batch(name)
    layout = net.tokens.layout(x)
    tokens = net.tokens.patchify(x, layout)
    torch.manual_seed(3)
    kept, counts = net.draw_kept(net.tokens.occupied(tokens).flatten(), layout)
    shapes = []
    net.blocks[0].register_forward_hook(lambda block, inputs, output: shapes.append(inputs[0].shape[:2]))

    def predicted(tokens: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return net.predict(tokens, layout, t, y)[0]

    before, other = predicted(tokens), 2 * tokens.flatten(0, 1)
    other[kept] /= 2
    assert torch.equal(before, predicted(other.view_as(tokens)))
    assert not torch.allclose(before, predicted(2 * tokens))
    assert set(shapes) == {(1, sum(counts))}
    assert sum(counts) < 0.6 * sum(layout.lengths)


def test_patches_of_points_are_occupied() -> None:
    for name in ("voxels", "occupied voxels", "points"):
        tokens, (x, _, _) = TOKENS[name](), batch(name)
        layout = tokens.layout(x)
        cell = tokens.coords(x).round().long() // 4
        places = {(b, *c) for b, cloud in enumerate(cell.tolist()) for c in cloud}
        every = layout.cells if layout.packed else layout.cells.repeat(3, 1)
        occupied = tokens.occupied(tokens.patchify(x, layout)).flatten()
        where = torch.cat([layout.sample[:, None], every], dim=1)[occupied]
        assert {tuple(place) for place in where.tolist()} == places
        assert 0 < occupied.float().mean() < 1


@pytest.mark.parametrize("name", TOKENS)
@torch.no_grad()
def test_samples_do_not_see_each_other(name: str) -> None:
    net, inputs = model(name).eval(), batch(name)
    whole = net(*inputs)[0]
    for i in range(3):
        alone = net(*(z[i : i + 1] for z in inputs))[0]
        assert torch.allclose(whole[i : i + 1], alone, atol=1e-5)


def test_all_blocks_are_modulated_alike() -> None:
    net = model(next(iter(TOKENS)), modulation="scale")
    assert {block.modulation.num for block in net.blocks} == {4}


def test_every_weight_learns() -> None:
    net = model("points", router=partial(ExpertRace, num_experts=4, top_k=2), mask_ratio=[0.5, 0.9])
    prediction, routings = net(*batch("points"))
    aux_predictions = [routing.aux_prediction for routing in routings]
    assert all(aux_prediction.shape == prediction.shape for aux_prediction in aux_predictions)
    objective = prediction.square().mean() + sum(
        aux_prediction.square().mean() for aux_prediction in aux_predictions
    )
    (objective + sum(r.losses["similarity"].value for r in routings)).backward()
    assert net.mask_token.grad.abs().sum() > 0
    assert {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()} == set()


def test_the_plan_counts_a_pass_that_drops_nothing() -> None:
    make = partial(model, "points")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "any", lambda self: True)  # it has no values
        counts = count(make, (70, 3))
    assert counts.trainable == sum(p.numel() for p in make().parameters())
    assert (counts.multiply_adds, counts.products) == real_multiply_adds(make().eval(), (70, 3))


SMALL = [
    "model=masked",
    "model.hidden_size=48",
    "model.depth=2",
    "model.moe_layers=[1]",
    "model.mask_ratio=0.6",
]
SMALL += ["trainer.precision=fp32", "trainer.clip=0.15", "trainer.batch_size=4", "modality.tokens.patch=2"]


def trained(folder: Path, steps: int, options: list[str]) -> None:
    run, settings = trainer(folder, *SMALL, f"trainer.steps={steps}", *options)
    if checkpoint.exists(folder):
        resume(run, settings)
    run.run()


def test_runs_resume_sample_and_spread(tmp_path: Path) -> None:
    trained(tmp_path / "whole", 4, [])
    for steps in (2, 4):
        trained(tmp_path / "parts", steps, [])
    a, b = (checkpoint.load(tmp_path / name) for name in ("whole", "parts"))
    assert same(a["model"], b["model"])
    assert same(a["optimizer"], b["optimizer"])
    together(trained, 2, tmp_path / "two", 4, ["mesh.shard=2", "trainer.recompute=true"])
    for one, two in zip(curve(tmp_path / "whole"), curve(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    restored = restore(tmp_path / "two")
    labels = restored.model.conditioning.ask(3, restored.modality.classes)
    three, one = (
        draw_from(restored, part, batch_size=size).data for part, size in ((labels, 2), (labels.take([0]), 1))
    )
    assert three[0] == pytest.approx(one[0], abs=1e-4)


@pytest.mark.parametrize("ratio", [1.5, -0.1, [0.5], [0.5, 2], [0.9, 0.9, 0.9]])
def test_a_ratio_is_a_share(ratio: float | list[float]) -> None:
    with pytest.raises(ValueError, match="mask_ratio must be one share"):
        model("image", mask_ratio=ratio)


def test_the_experiment_is_the_papers_mask() -> None:
    settings = config("experiment=fastdit3d", "model=masked", "modality.tokens.resolution=32")
    net = build.make_model(settings, build.make_modality(settings))
    assert isinstance(net, MaskedDiTMoE)
    assert net.mask_ratio == (0.95, 0.99)
    assert net.tokens.grid(torch.zeros(1, 64, 3)) == (8, 8, 8)
