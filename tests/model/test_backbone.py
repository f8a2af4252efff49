"""The backbone: equal to the references, the identity at birth, blind to the rest of its batch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ditmoe import DiTMoE
from ditmoe.model import Block
from ditmoe.moe import TokenChoice
from ditmoe.nn import Attention, FeedForward, cells, normalize
from ditmoe.pretrained.conversion import translated
from ditmoe.pretrained.published import architecture, recipes
from ditmoe.pretrained.weights import make
from modalities.image import LatentTokens
from modalities.pointcloud import VoxelTokens
from tests.routers import D, batch


def published(golden) -> DiTMoE:
    """The model of a golden, with its weights."""
    state = {key[3:]: torch.tensor(golden[key]) for key in golden.files if key.startswith("w::")}
    arch = architecture({key: tuple(value.shape) for key, value in state.items()}, num_heads=4)
    model = make(arch.config(top_k=2, time_scale=1.0))
    model.load_state_dict(dict(translated(state, recipes(model, arch), Path("golden"))))
    return model


@pytest.mark.parametrize("file", ["dit_tiny.npz", "dit_moe_tiny.npz", "dit_moe_qknorm_tiny.npz"])
@torch.no_grad()
def test_equals_the_published_models(golden: Callable, file: str) -> None:
    z = golden(file)
    model = published(z)
    x, y = torch.tensor(z["x"]), torch.tensor(z["y"])
    assert torch.allclose(
        model.tokens.positions(model.tokens.layout(x)), torch.tensor(z["w::pos_embed"])[0], atol=1e-6
    )
    for t, out in (("t", "out"), ("t_unscaled", "out_unscaled")):
        got = model(x, torch.tensor(z[t]).float(), y)[0]
        assert torch.allclose(got, torch.tensor(z[out]), atol=1e-5)


@torch.no_grad()
def test_equals_dit3d(golden: Callable) -> None:
    z = golden("golden_dit3d_tiny.npz")
    model = published(z)
    x, t, y = torch.tensor(z["x"]).mT.contiguous(), torch.tensor(z["t"]).float(), torch.tensor(z["y"])
    out = model(x, t, y)[0]
    assert torch.allclose(out, torch.tensor(z["out"]).mT, atol=1e-4)


def tiny(**options) -> DiTMoE:
    """A small mixture on 3-D voxels with weights that are not zero anywhere."""
    torch.manual_seed(0)
    router = partial(TokenChoice, num_experts=4, top_k=2)
    model = DiTMoE(VoxelTokens(24, 8, 4, 3.0), 3, 24, 3, 4, router=router, **options)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1 and not p.any():
                p.normal_(std=0.1)
    return model


def test_predicts_nothing_at_birth() -> None:
    model = DiTMoE(VoxelTokens(24, 8, 4), 3, 24, 2, 4, router=partial(TokenChoice, num_experts=4, top_k=2))
    out, routings = model(torch.randn(2, 50, 3), torch.tensor([1.0, 999.0]), torch.tensor([0, 3]))
    assert not out.any()
    assert len(routings) == 2


@torch.no_grad()
def test_samples_do_not_see_each_other() -> None:
    model = tiny().eval()
    x, t, y = torch.randn(3, 60, 3), torch.tensor([10.0, 500.0, 990.0]), torch.tensor([0, 1, 3])
    whole = model(x, t, y)[0]
    for i in range(3):
        assert torch.allclose(whole[i], model(x[i : i + 1], t[i : i + 1], y[i : i + 1])[0][0], atol=1e-5)


@torch.no_grad()
def test_order_of_points_does_not_matter() -> None:
    model = tiny()
    x, t, y = torch.randn(1, 60, 3), torch.tensor([300.0]), torch.tensor([1])
    order = torch.randperm(60)
    assert torch.allclose(model(x, t, y)[0][:, order], model(x[:, order], t, y)[0], atol=1e-5)


@torch.no_grad()
def test_a_block_with_modulation_scale_has_no_shifts_and_bounded_gates() -> None:
    x, context = batch()
    block = Block(D, Attention(D, 2), FeedForward(D, 24, "gelu"), modulation="scale")
    for parameter in block.parameters():
        parameter.normal_()
    modulation = block.modulation.linear(F.silu(context.c))[:, None]
    scale1, gate1, scale2, gate2 = modulation.split(D, dim=-1)
    assert modulation.abs().max() > 2, "some gates are clamped"
    gate1, gate2 = (gate.clamp(-2, 2).tanh() for gate in (gate1, gate2))
    h = x + gate1 * block.attention(normalize(x) * (1 + scale1))
    expected = h + gate2 * block.feed_forward(normalize(h) * (1 + scale2))
    assert torch.allclose(block(x, context, context.c)[0], expected, atol=1e-4, rtol=1e-4)


def test_only_the_named_layers_have_experts() -> None:
    model = tiny(moe_layers=[1])
    assert len(model(torch.randn(1, 20, 3), torch.tensor([5.0]), torch.tensor([0]))[1]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"moe_layers": [7]}, r"\[7\]"),
        ({"activation": "relu"}, "relu"),
        ({"dense_activation": "x", "moe_layers": []}, "x"),
        ({"attention": "space"}, "attention must be one of full, factorised, window, got 'space'"),
        ({"modulation": "half"}, "modulation must be full or scale, got 'half'"),
    ],
)
def test_wrong_options_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(**options)


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="24 and 5"):
        DiTMoE(VoxelTokens(24, 8, 4), 3, 24, 1, 5)


class Grid(LatentTokens):
    """Clips of the smallest kind: a token a cell, places along the first axis are frames."""

    axes = 2

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, channels=5, patch=1)


def clips(along: str = "full", depth: int = 2, rope: bool = False) -> DiTMoE:
    torch.manual_seed(0)
    model = DiTMoE(Grid(24), 3, 24, depth, 2, moe_layers=[], attention=along, rope=rope)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1 and not p.any():
                p.normal_(std=0.2)
    return model.eval()


X, Y = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2])


@torch.no_grad()
def test_factorised_blocks_see_their_frame_and_then_their_place() -> None:
    changed, t = X.clone(), torch.tensor([5.0, 50.0])
    changed[:, :, 1, 2] += 3.0

    def moved(model: DiTMoE) -> torch.Tensor:
        return (model(X, t, Y)[0] - model(changed, t, Y)[0]).abs().amax(dim=(0, 1)) > 1e-6

    space = moved(clips("factorised", 1))
    assert space[1].all()
    assert space.sum() == 6
    time = clips("factorised", 2)
    time.blocks = time.blocks[1:]
    assert moved(time)[:, 2].all()
    assert moved(time).sum() == 4
    assert moved(clips("factorised", 2)).all()


@pytest.mark.parametrize("along", ["full", "factorised"])
@torch.no_grad()
def test_rotary_positions_know_differences_alone(along: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, t = clips(along, 4, rope=True), torch.tensor([5.0, 50.0])
    plain = model(X, t, Y)[0]
    where = model.tokens.coordinates(model.tokens.layout(X))
    assert where.tolist() == cells((4, 6)).tolist()
    monkeypatch.setattr(model.tokens, "coordinates", lambda layout: where + torch.tensor([70.0, -3.5]))
    assert torch.allclose(model(X, t, Y)[0], plain, atol=1e-4)
    monkeypatch.setattr(model.tokens, "coordinates", lambda layout: where * torch.tensor([1.0, 1.5]))
    assert not torch.allclose(model(X, t, Y)[0], plain, atol=1e-3)
    assert not torch.allclose(model(X.flip(-1), t, Y)[0].flip(-1), plain, atol=1e-3)


@torch.no_grad()
def test_a_time_for_each_frame() -> None:
    model, t = clips(), torch.tensor([5.0, 800.0])
    frames = t[:, None].expand(2, 4).clone()
    assert torch.allclose(model(X, frames, Y)[0], model(X, t, Y)[0], atol=1e-5)
    model = clips("factorised", 1)
    before = model(X, frames, Y)[0]
    frames[0, 2] = 0.0
    moved = (model(X, frames, Y)[0] - before).abs().amax(dim=(1, 3)) > 1e-6
    assert moved.tolist() == [[False, False, True, False], [False] * 4]
