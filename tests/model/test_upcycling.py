"""Starting from other weights: a mixture that begins as the dense model, blocks that move to other data."""

from functools import partial

import pytest
import torch

from ditmoe.model import DiTMoE, transfer
from ditmoe.model.neurons import split, taylor
from ditmoe.moe import ExpertChoice, MoE, Sinkhorn, TokenChoice
from ditmoe.nn import FeedForward
from ditmoe.nn.layers import activate
from ditmoe.pretrained import Upcycling
from modalities.image import LatentTokens
from modalities.pointcloud import PointVoxelTokens, VoxelTokens

D = 24


def image_model(**options) -> DiTMoE:
    torch.manual_seed(0)
    options = {"dense_activation": "swiglu", **options}
    model = DiTMoE(LatentTokens(D), 3, D, depth=2, num_heads=4, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def mixture(router: type = TokenChoice, tokens: type = LatentTokens, **options) -> DiTMoE:
    chosen = {"capacity": 2.0} if router is ExpertChoice else {"top_k": 2, "renormalize": True}
    torch.manual_seed(1)
    route = partial(router, num_experts=4, **{**chosen, **options})
    return DiTMoE(tokens(D), 3, D, depth=2, num_heads=4, router=route)


@pytest.mark.parametrize("router", [TokenChoice, Sinkhorn])
def test_a_mixture_starts_as_the_dense_model_shared_experts_included(router: type) -> None:
    dense, model = image_model(), mixture(router)
    report = transfer(model, dense.state_dict())
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0]), torch.tensor([0, 3])
    assert torch.allclose(model(x, t, y)[0], dense(x, t, y)[0], atol=1e-5)
    assert report.exact
    assert not report.unused
    assert {name.split(".")[3] for name in report.new} == {"router", "shared"}
    assert all("experts" in name for name in report.copied)
    assert len(report.taken) + len(report.copied) + len(report.new) == len(model.state_dict())
    model(x, t, y)[0].square().mean().backward()
    for block in model.blocks:
        assert block.feed_forward.router.weight.grad is not None
        assert block.feed_forward.shared.down.weight.grad.any()


@torch.no_grad()
def test_noise_tells_the_copies_apart() -> None:
    dense, found = image_model(), []
    for _ in range(2):
        model = mixture()
        transfer(model, dense.state_dict(), noise=1e-4, generator=torch.Generator().manual_seed(5))
        up, taken = model.blocks[0].feed_forward.experts.up, dense.blocks[0].feed_forward.up.weight
        assert (up[0] - up[1]).std().item() == pytest.approx(1.4e-4, rel=0.1)
        assert (up - taken).abs().max() < 1e-3
        found.append(up)
    assert torch.equal(*found)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("shared", [2.0, 0.0])
def test_experts_of_all_neurons_are_the_dense_layer_together(activation: str, shared: float) -> None:
    dense = image_model(dense_activation=activation)
    route = partial(TokenChoice, num_experts=4, top_k=4, renormalize=True)
    options = {"expert_ratio": (4 - shared) / 4, "shared_ratio": shared, "activation": activation}
    model = DiTMoE(LatentTokens(D), 3, D, depth=2, num_heads=4, router=route, **options)
    report = transfer(model, dense.state_dict(), neurons=True)
    for router in model.routers:
        router.weight.zero_()  # which then weighs all alike
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0]), torch.tensor([0, 3])
    assert torch.allclose(model(x, t, y)[0], dense(x, t, y)[0], atol=1e-4)
    assert not report.unused
    assert not report.copied
    assert not report.exact
    assert {name.split(".")[3] for name in report.split} == ({"experts", "shared"} if shared else {"experts"})


def test_what_matters_most_is_shared_and_a_gradient_says_what_that_is() -> None:
    layer, x = FeedForward(D, 8, "swiglu"), torch.randn(5, D)
    h = activate(layer.up(x), "swiglu")
    h.retain_grad()
    layer.down(h).square().sum().backward()
    matters = taylor(layer)
    assert torch.allclose(matters, (h * h.grad).sum(0).abs(), rtol=1e-3)
    moe = MoE(TokenChoice(D, 2, 1), D, 2, 4, "swiglu")
    split(moe, layer.state_dict(), matters)
    first = matters.argsort(descending=True)
    assert torch.equal(moe.shared.down.weight, layer.down.weight[:, first[:4]])
    assert torch.equal(moe.experts.down[1], layer.down.weight[:, first[[5, 7]]])
    with pytest.raises(
        ValueError, match="must leave neurons to the routed experts: the dense layer has 8, the shared"
    ):
        split(MoE(TokenChoice(D, 2, 1), D, 2, 8, "swiglu"), layer.state_dict())


@pytest.mark.parametrize(
    ("router", "options"),
    [(TokenChoice, {"renormalize": False}), (TokenChoice, {"capacity": 1.0}), (ExpertChoice, {})],
)
def test_where_weights_do_not_sum_to_one_the_report_says_so(router: type, options: dict) -> None:
    report = transfer(mixture(router, **options), image_model().state_dict())
    assert not report.exact
    assert "renormalize=true" in report.lines()[-1]


@pytest.mark.parametrize(
    "tokens", [partial(VoxelTokens, resolution=8), partial(PointVoxelTokens, resolution=8)]
)
def test_blocks_of_an_image_model_serve_clouds(tokens: partial) -> None:
    dense = image_model()
    torch.manual_seed(2)
    model = DiTMoE(tokens(D), 7, D, depth=2, num_heads=4, dense_activation="swiglu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = transfer(model, dense.state_dict())
    assert {n for n in report.taken if n.startswith("blocks.")} == {
        n for n in before if n.startswith("blocks.")
    }
    assert {"embed.weight", "final.linear.weight", "conditioning.table.weight"} <= set(report.new)
    assert {"embed.weight", "final.linear.weight", "conditioning.table.weight"} <= set(report.unused)
    after = model.state_dict()
    for name in report.taken:
        assert torch.equal(after[name], dense.state_dict()[name]), name
    for name in report.new:
        assert torch.equal(after[name], before[name]), name
    out = model(torch.randn(2, 32, 3), torch.tensor([1.0, 999.0]), torch.tensor([0, 7]))[0]
    assert out.shape == (2, 32, 3)
    assert out.isfinite().all()


def test_a_deeper_source_leaves_blocks_over_and_a_shallower_one_leaves_some_new() -> None:
    dense = image_model()
    deep = DiTMoE(LatentTokens(D), 3, D, depth=3, num_heads=4, dense_activation="swiglu")
    assert all(name.startswith("blocks.2.") for name in transfer(deep, dense.state_dict()).new)
    report = transfer(image_model(), deep.state_dict())
    assert report.unused
    assert all(name.startswith("blocks.2.") for name in report.unused)


def test_half_an_expert_is_none() -> None:
    # Only `down` would fit.
    dense = DiTMoE(LatentTokens(D), 3, D, depth=2, num_heads=4, dense_activation="gelu")
    report = transfer(mixture(), dense.state_dict())
    assert not report.copied
    assert any("experts.down" in name for name in report.new)


def test_weights_of_another_width_are_refused() -> None:
    narrow = DiTMoE(LatentTokens(16), 3, 16, depth=2, num_heads=4)
    with pytest.raises(ValueError, match=r"no block fits: .* is \(24, 24\) there, \(16, 16\) here"):
        transfer(narrow, image_model().state_dict())
    with pytest.raises(ValueError, match="is missing there"):
        transfer(narrow, {"weight": torch.zeros(3)})


def test_what_no_way_of_upcycling_is_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match=r"upcycle\.experts must be copies or neurons, got 'half'"):
        Upcycling(experts="half")
    with pytest.raises(ValueError, match=r"upcycle\.noise"):
        Upcycling(noise=-1)
