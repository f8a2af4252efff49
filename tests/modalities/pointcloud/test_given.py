"""A cloud beside the noisy one: nothing at birth or where hidden, the scan kept to the bit, one line for bad input."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ditmoe import DiTMoE
from ditmoe.conditioning import SHOWN, Condition
from ditmoe.config import build
from ditmoe.config.words import parts_asked
from ditmoe.diffusion import DDPM, FlowMatching, Sampling
from ditmoe.model import transfer
from ditmoe.moe import TokenChoice
from ditmoe.nn import Layout
from ditmoe.sample import draw
from modalities.pointcloud import Clouds, PointCloud, PointVoxelTokens, VoxelTokens
from modalities.pointcloud.data.channels import as_bytes
from modalities.pointcloud.data.ply import write_ply
from modalities.pointcloud.tokens.given_cloud import with_there
from tests.diffusion.test_given import DISCRETE, FLOW
from tests.subjects import section
from tests.training.test_trainer import trainer

ALL = ("xyz", "rgb", "normals")
X, T, LABELS = torch.randn(3, 90, 3), torch.tensor([5.0, 400.0, 950.0]), torch.tensor([0, 1, 3])
GIVEN = {"points": torch.randn(3, 16, 3)}


def model(given: float = 0.5, kept: str = "all", channels: int = 3) -> DiTMoE:
    torch.manual_seed(0)
    options = {"features": 4, "width": 16, "kept": kept, "points": 90, "given": given, "channels": channels}
    tokens = PointVoxelTokens(24, 8, 4, **options)
    net = DiTMoE(tokens, 3, 24, 2, 4, router=partial(TokenChoice, num_experts=4, top_k=2)).eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1 and not p.any():
                p.normal_(std=0.1)
    return net


def predict(net: DiTMoE, given: dict[str, Tensor] | None = None, hidden: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return net(X, T, Condition.of_labels(LABELS, 3).beside(given or {}, hidden))[0]


def adapter(tokens: type = PointVoxelTokens, num_points: int = 90) -> PointCloud:
    facts = {"classes": ["a", "b", "c"], "mean": [0.1, 0.2, 0.3], "scale": 0.17}
    options = {"given": 0.5} if tokens is PointVoxelTokens else {}
    return PointCloud(Clouds, partial(tokens, resolution=8, patch=4, **options), num_points, data_facts=facts)


def coloured_adapter() -> PointCloud:
    facts = {"classes": ["a", "b", "c"], "mean": [0.1, 0.2, 0.3], "scale": 0.17, "channels": list(ALL)}
    tokens = partial(PointVoxelTokens, resolution=8, patch=4, given=0.5)
    return PointCloud(Clouds, tokens, 90, channels=ALL, data_facts=facts)


def coloured(num: int = 30) -> np.ndarray:
    """A scan with colours and normals."""
    rng = np.random.default_rng(1)
    normals = np.eye(3)[rng.integers(3, size=num)]
    return np.concatenate([scan(num), rng.integers(256, size=(num, 3)) / 255, normals], 1).astype(np.float32)


def scan(num: int = 30) -> np.ndarray:
    return np.random.default_rng(0).normal(0.2, 0.17, (num, 3)).astype(np.float32)


def test_a_model_that_starts_from_one_without_predicts_what_that_did() -> None:
    old, new = model(given=0), model()
    new.tokens.given_cloud.initialize()
    moved = transfer(new, old.state_dict())
    assert {name.split(".")[1] for name in moved.new} == {"given_cloud"}
    assert torch.equal(predict(new, GIVEN), predict(old))


def test_hidden_is_as_if_nothing_were_given_and_each_sample_sees_its_own() -> None:
    net = model()
    plain, shown = predict(net), predict(net, GIVEN)
    some = predict(net, GIVEN, torch.tensor([True, False, True]))
    assert torch.equal(predict(net, GIVEN, torch.ones(3, dtype=torch.bool)), plain)
    assert ((shown - plain).abs().amax((1, 2)) > 1e-4).all()
    assert torch.allclose(some, torch.stack([plain[0], shown[1], plain[2]]), atol=1e-5)


def test_a_part_counts_the_same_however_often_its_points_come() -> None:
    net = model()
    again = {"points": GIVEN["points"].repeat(1, 4, 1)}
    assert torch.allclose(predict(net, again), predict(net, GIVEN), atol=1e-5)


def test_tokens_of_any_layout_read_what_those_of_all_cells_do() -> None:
    tokens = model(kept="occupied").tokens
    given = {**GIVEN, SHOWN: torch.tensor([True, False, True])}
    whole = tokens.embed_given(given, Layout.even(tokens.grid(X), 3, X.device))
    occupied = tokens.layout(0.2 * X)
    assert torch.equal(tokens.embed_given(given, occupied)[0], whole.flatten(0, 1)[occupied.cell])
    kept = torch.tensor([1, 5, 9, 20])
    masked = Layout.even(tokens.grid(X), 3, X.device).only(kept, [2, 1, 1])
    assert torch.equal(tokens.embed_given(given, masked)[0], whole.flatten(0, 1)[kept])


@pytest.mark.parametrize("kind", ["", "model=masked", "modality.tokens.kept=occupied"])
def test_batches_are_functions_of_their_address_and_train(kind: str, tmp_path: Path) -> None:
    words = ["given=0.7", "trainer.steps=2", "trainer.batch_size=4", *([kind] if kind else [])]
    (one, _), (other, _) = (trainer(tmp_path / name, *words) for name in ("a", "b"))
    assert one.run()
    batch, again = one.batches(7), other.batches(7)
    assert torch.equal(batch.asked.given["points"], again.asked.given["points"])
    assert torch.equal(batch.asked.given[SHOWN], again.asked.given[SHOWN])
    assert one.model.tokens.given_cloud.to_points.weight.any()


def test_what_a_sample_is_given_does_not_depend_on_its_batch() -> None:
    def drawn(first: int) -> Tensor:
        rngs = [np.random.default_rng([9, i]) for i in range(first, 3)]
        return adapter().draw_beside(X[first:], rngs)["points"]

    whole = drawn(0)
    assert torch.equal(drawn(1), whole[1:])
    assert whole.shape == (3, 512, 3)


CASES = [(n, FlowMatching) for n in FLOW] + [(n, partial(DDPM)) for n in DISCRETE]


@pytest.mark.parametrize(("name", "process"), CASES)
def test_the_scan_comes_back_to_the_bit(name: str, process) -> None:
    given, modality = scan(), adapter()
    parts = parts_asked(modality, given, {"points": 120}, {}, 0.7, given_guidance=1.5)
    asked = Condition.of_labels(torch.tensor([0, 1]), 3)
    scheduler = build.make(section("scheduler", name))
    x = draw(
        model(), modality, process(), scheduler, Sampling(4), asked, seed=0, parts=parts, given_guidance=1.5
    )
    samples = parts.finish(modality.decode(x))
    assert samples.shape == (2, 120, 3)
    assert np.array_equal(samples[:, :30], np.stack([given, given]))
    assert not np.array_equal(samples[0, 30:], samples[1, 30:])


def test_a_scan_in_other_units_is_brought_into_place_and_back() -> None:
    own = scan().astype(np.float64)
    far = own * 3000 + np.array([4e5, 2e3, 1e5])
    plain, placed, fitted = (
        parts_asked(adapter(), points, {}, {"place": place}, 0.7)
        for points, place in ((own, None), (far, [4e5, 2e3, 1e5, 3000]), (far, "fit"))
    )
    assert torch.allclose(placed.given.x, plain.given.x, atol=1e-4)
    box = fitted.given.x[fitted.given.known.expand_as(fitted.given.x)].view(-1, 3)
    assert float((box.amax(0) - box.amin(0)).norm()) == pytest.approx(5.9, rel=1e-5)
    assert torch.allclose(box.amax(0), -box.amin(0), atol=1e-4)
    for parts in (placed, fitted):
        back = parts.finish(adapter().decode(parts.given.x))
        assert np.array_equal(back[0, :30], far)
        assert not any("place=fit" in line for line in parts.told)
    assert "place=fit" in parts_asked(adapter(), far, {}, {}, 0.7).told[0]


def test_a_strength_begins_at_the_given_points_and_holds_them_unless_told_not_to() -> None:
    held, free = (
        parts_asked(adapter(), scan(), {}, {"hold": hold}, 0.7, strength=0.4) for hold in (True, False)
    )
    assert int(held.given.known.sum()) == 30
    assert held.given.beside
    assert free.given.known is None
    assert not free.given.beside
    for parts in (held, free):
        assert parts.given.strength == 0.4
        begun, times = np.unique(adapter().decode(parts.given.x)[0].round(5), axis=0, return_counts=True)
        assert np.allclose(begun, np.unique(scan().round(5), axis=0), atol=2e-5)
        assert times.max() <= 5
    only_read = parts_asked(adapter(), scan(), {}, {"hold": False}, 0.7).given
    assert only_read.known is None
    assert only_read.beside
    with pytest.raises(ValueError, match="leaves nothing"):
        parts_asked(adapter(), scan(), {}, {"hold": False}, 0.0)


def test_colours_and_normals_come_back_to_the_bit_and_are_drawn_where_a_part_has_none(tmp_path: Path) -> None:
    whole, bare, modality = coloured(), scan(39)[30:], coloured_adapter()
    write_ply(tmp_path / "a.ply", whole[:, :3], as_bytes(whole[:, 3:6]), whole[:, 6:])
    np.save(tmp_path / "bare.npy", bare)
    each = [tmp_path / "a.ply", tmp_path / "bare.npy", whole]
    parts = parts_asked(modality, each, {"points": 120}, {}, 0.7, given_guidance=1.5)
    assert parts.told == ["bare.npy: no colours, no normals: they are drawn"]
    net, scheduler = model(channels=9), build.make(section("scheduler", "flow_ancestral"))
    asked = Condition.of_labels(torch.tensor([0, 1]), 3)
    x = draw(
        net, modality, FlowMatching(), scheduler, Sampling(3), asked, seed=0, parts=parts, given_guidance=1.5
    )
    samples = parts.finish(modality.decode(x))
    assert samples.shape == (2, 120, 9)
    assert np.array_equal(samples[:, :30], np.stack([whole, whole]))
    assert np.array_equal(samples[:, 39:69], np.stack([whole, whole]))
    assert np.array_equal(samples[:, 30:39, :3], np.stack([bare, bare]))
    drawn = samples[:, 30:39, 3:]
    assert (drawn[0] != drawn[1]).any(-1).all()
    assert np.allclose(np.linalg.norm(drawn[..., 3:], axis=-1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="strength must begin at points with colours and normals"):
        parts_asked(modality, bare, {}, {}, 0.7, strength=0.3)
    assert parts_asked(modality, whole, {}, {"place": "fit"}, 0.7, strength=0.3).given.known.sum() == 30


def test_a_model_of_colours_reads_those_of_the_given_cloud_where_they_are_there() -> None:
    net, rng = model(channels=9), np.random.default_rng(0)
    x, points = torch.randn(3, 90, 9), torch.from_numpy(rng.normal(size=(3, 16, 9)).astype(np.float32))
    there = torch.ones(3, 16, 6)

    def predict(points: Tensor, there: Tensor) -> Tensor:
        condition = Condition.of_labels(LABELS, 3).beside({"points": with_there(points, there)})
        with torch.no_grad():
            return net(x, T, condition)[0]

    other = torch.cat([points[..., :3], -points[..., 3:]], dim=-1)
    one = predict(points, there)
    assert ((predict(other, there) - one).abs().amax((1, 2)) > 1e-4).all()
    assert ((predict(points, 0 * there) - one).abs().amax((1, 2)) > 1e-4).all()
    assert torch.equal(predict(other, 0 * there), predict(points, 0 * there))


def test_parts_of_coloured_clouds_are_those_of_their_places() -> None:
    clouds = torch.from_numpy(np.stack([coloured(90) for _ in range(8)]))

    def drawn(modality: PointCloud, x0: Tensor) -> Tensor:
        return modality.draw_beside(x0, [np.random.default_rng([9, i]) for i in range(8)])["points"]

    beside = drawn(coloured_adapter(), clouds)
    assert beside.shape == (8, 512, 3 + 2 * 6)
    assert torch.equal(beside[..., :3], drawn(adapter(), clouds[..., :3]))
    known = {tuple(row) for row in clouds[0, :, 3:].tolist()}
    values, there = beside[..., 3:9], beside[..., 9:]
    assert {tuple(row) for row in values[there.all(-1)].tolist()} <= known
    assert not values[there == 0].any()
    assert 0 < there[..., 0].mean() < 1 > there[..., 3].mean() > 0


def test_large_scans_are_thinned_and_parts_joined() -> None:
    parts = parts_asked(adapter(), [scan(60), scan(50)], {}, {}, 0.7)
    assert parts.told == ["67 of the scan's 110 points are kept: a cloud of points=90 has room for no more"]
    assert int(parts.given.known.sum()) == 67


def test_a_model_not_trained_for_it_holds_the_scan_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    parts = parts_asked(adapter(), scan(), {}, {}, 0.0)
    assert parts.given.known.any()
    assert not parts.given.beside
    assert "not trained with given parts" in parts.told[-1]
    plain = adapter(VoxelTokens)
    assert not parts_asked(plain, scan(), {}, {}, 0.7).given.beside
    assert plain.draw_beside(X, []) == {}
    said = adapter(VoxelTokens)
    assert said.draw_beside(X, []) == said.draw_beside(X, []) == {}
    assert capsys.readouterr().err.count("read no given cloud") == 1


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    rows = scan()
    rows[:4] = np.nan
    np.save(tmp_path / "nan.npy", rows)
    told = parts_asked(adapter(), tmp_path / "nan.npy", {}, {}, 0.7).told
    assert told == ["nan.npy: 4 of 30 points have NaN or infinity and are left out"]
    write_ply(tmp_path / "scan.ply", scan())
    np.save(tmp_path / "empty.npy", rows[:0])
    (tmp_path / "bad.ply").write_text("hello")
    for given, words in [
        (rows * np.nan, {}),
        (rows[:0], {}),
        (np.zeros((2, 30, 3)), {}),
        (np.array(["a"]), {}),
        ([], {}),
        (3, {}),
        (tmp_path / "empty.npy", {}),
        (tmp_path / "bad.ply", {}),
        (tmp_path / "none.ply", {}),
        (tmp_path, {}),
        ([tmp_path / "scan.ply", 3], {}),
        (scan(1), {"place": "fit"}),
        (scan(), {"place": "there"}),
        (scan(), {"place": [1, 2]}),
        (scan(), {"place": [0, 0, 0, 0]}),
        (scan(), {"place": [0, 0, 0, 1e-300]}),
        (scan(), {"place": [0, float("nan"), 0, 1]}),
        (scan(), {"plaice": "fit"}),
    ]:
        with pytest.raises((ValueError, OSError)) as error:
            parts_asked(adapter(), given, {}, words, 0.7)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="points must be at least 1"):
        parts_asked(adapter(), scan(), {"points": 0}, {}, 0.7)
