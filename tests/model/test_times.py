"""A time of one's own for each frame or token: what hears it, with every router (modalities: their laws)."""

from functools import partial

import pytest
import torch
from torch import Tensor

from ditmoe import DiTMoE
from ditmoe.diffusion import DDPM, FlowMatching
from ditmoe.model import MaskedDiTMoE, initialize_layers
from ditmoe.moe import DiffMoE, ExpertChoice, ExpertRace, Soft, TimestepExperts, TokenChoice
from ditmoe.nn import Layout
from modalities.image import LatentTokens
from modalities.pointcloud import PointVoxelTokens
from tests.routers import B, D, N, batch, found, layer

CPU = torch.device("cpu")
GRID = (4, 3)


def everywhere_some(net: DiTMoE) -> DiTMoE:
    """With weights that are nowhere zero."""
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return net


ROUTERS = found()


def router(name: str):
    if name == "dense":
        return None
    make = ROUTERS[name].make
    return partial(make, boundaries=[300, 700]) if make.func is TimestepExperts else make


def of_router(name: str, kind: type[DiTMoE] = DiTMoE, **options) -> DiTMoE:
    torch.manual_seed(0)
    return everywhere_some(kind(LatentTokens(24, 3, 1), 3, 24, 2, 4, router(name), **options))


def shapes(t: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Times per sample in every other shape."""
    if layout.packed:
        return {"token": t[layout.sample][None]}
    frames, tokens = layout.grids[0][0], layout.lengths[0]
    return {str(n): t[:, None].expand(-1, n).contiguous() for n in (1, frames, tokens)}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", [*ROUTERS, "dense"])
@torch.no_grad()
def test_equal_times_of_any_shape_are_one_time(name: str, packed: bool, training: bool) -> None:
    grids = [GRID, (2, 5), (3, 4)] if packed else [GRID] * 3
    layout = Layout.pack(grids, CPU) if packed else Layout.even(GRID, 3, CPU)
    net = of_router(name).train(training)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(*((1, sum(layout.lengths)) if packed else (3, 12)), 3, generator=g)
    t, y = torch.tensor([100.0, 500.0, 900.0]), torch.tensor([0, 1, 3])
    expected, routings, *_ = net.predict(x, layout, t, y)
    for shape, times in shapes(t, layout).items():
        found, others, *_ = net.predict(x, layout, times, y)
        assert torch.allclose(found, expected, atol=1e-6), shape
        for routing, other in zip(routings, others, strict=True):
            assert torch.equal(routing.counts, other.counts)
            for own, loss in routing.losses.items():
                assert torch.allclose(loss.value, other.losses[own].value, rtol=1e-5)


@pytest.mark.parametrize("name", [*ROUTERS, "dense"])
@torch.no_grad()
def test_a_time_per_frame_is_one_per_token_and_samples_are_alone(name: str) -> None:
    net = of_router(name).eval()
    x, y = torch.randn(3, 3, *GRID), torch.tensor([0, 1, 3])
    frames = 1000 * torch.rand(3, GRID[0])
    whole = net(x, frames, y)[0]
    assert torch.allclose(whole, net(x, frames.repeat_interleave(GRID[1], dim=1), y)[0], atol=1e-6)
    for i in range(3):
        own = slice(i, i + 1)
        assert torch.allclose(whole[own], net(x[own], frames[own], y[own])[0], atol=1e-5)
    tokens, layout = net.tokens.pack(list(x))
    row = net.predict(tokens[None], layout, frames.repeat_interleave(GRID[1], dim=1).view(1, -1), y)[0]
    assert torch.allclose(row, net.tokens.patchify(whole, net.tokens.layout(x)).view_as(row), atol=1e-5)


@torch.no_grad()
def test_experts_that_know_the_time_are_the_same_however_many_times() -> None:
    """Few times are modulated with every expert, many with those that their tokens take."""
    moe, (x, context) = layer("diff_moe"), batch("diff_moe")
    assert isinstance(moe.router, DiffMoE)
    rows = moe.router(x, context).dispatch(x, context.layout)
    few = moe.experts.modulation(rows, context.c[:, None])
    many = moe.experts.modulation(rows, context.c[:, None].expand(-1, N, -1))
    assert torch.allclose(few, moe.experts.modulation(rows, context.c), atol=1e-6)
    assert torch.allclose(few, many, atol=1e-6)


def test_experts_on_mixtures_of_tokens_know_no_time_per_token() -> None:
    x, context = batch("soft")
    rows = Soft(D, 2, 1)(x, context).dispatch(x, context.layout)
    with pytest.raises(ValueError, match="mixtures of tokens know no time per frame or token"):
        rows.row_of((B, N))


@pytest.mark.parametrize("name", ["sinkhorn", "base", "timestep"])
def test_gradients_and_losses_of_segments_within_samples(name: str) -> None:
    """A sample of which one segment has some tokens and another none."""
    inner = partial(ExpertRace, num_experts=2, top_k=1) if name == "timestep" else router(name)
    torch.manual_seed(0)
    net = everywhere_some(
        DiTMoE(LatentTokens(24, 3, 1), 3, 24, 2, 4, partial(TimestepExperts, boundaries=[500], router=inner))
    )
    t = torch.full((2, 4), 100.0)
    t[0, 1] = 900.0
    out, routings = net(torch.randn(2, 3, *GRID), t, torch.tensor([0, 1]))
    extra = sum(loss.value for routing in routings for loss in routing.losses.values())
    (out.square().mean() + extra).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    late = routings[0].token[routings[0].expert >= net.routers[0].per_segment]
    assert set(late.tolist()) <= {3, 4, 5}  # the second frame of the first sample
    assert len(late)


@torch.no_grad()
def test_masked_training_keeps_the_times_of_the_tokens_that_stay() -> None:
    net = of_router("diff_moe", MaskedDiTMoE, mask_ratio=0.5, decoder_depth=1, decoder_window=2).train()
    x, y = torch.randn(2, 3, *GRID), torch.tensor([0, 1])
    t = torch.tensor([100.0, 900.0])

    def predicted(times: Tensor) -> Tensor:
        torch.manual_seed(3)
        return net(x, times, y)[0]

    for n in GRID[0], GRID[0] * GRID[1]:
        assert torch.allclose(predicted(t[:, None].expand(-1, n).contiguous()), predicted(t), atol=1e-6)
    frames = torch.tensor([[100.0, 300.0, 500.0, 700.0], [900.0, 20.0, 30.0, 40.0]])
    heard = []
    hook = net.blocks[0].register_forward_hook(lambda block, given, out: heard.append(given[1]))
    predicted(frames)
    hook.remove()
    context = heard[0]
    spread = context.layout.spread(context.t[..., None])[0, :, 0]
    sample, row = context.layout.sample, context.layout.cells[:, 0]
    assert torch.equal(spread, frames[sample, row])
    assert len(spread) == 12  # half of 2 x 12


@pytest.mark.parametrize("kept", ["all", "occupied"])
@torch.no_grad()
def test_each_point_has_the_time_of_its_patch(kept: str) -> None:
    torch.manual_seed(0)
    tokens = PointVoxelTokens(24, 8, 4, features=4, width=16, kept=kept)
    net = everywhere_some(DiTMoE(tokens, 3, 24, 1, 4)).eval()
    for block in net.blocks:  # nothing goes from patch to patch
        block.modulation.linear.weight.zero_()
        block.modulation.linear.bias.zero_()
    net.final.modulation.linear.weight.zero_()
    x, y, t = torch.randn(2, 90, 3), torch.tensor([0, 1]), torch.tensor([100.0, 700.0])
    whole = net(x, t, y)[0]
    for n in (2, 8):
        assert torch.allclose(net(x, t[:, None].expand(-1, n).contiguous(), y)[0], whole, atol=1e-6)
    times = t[:, None].repeat(1, 8)
    times[0, 5] = 900.0
    moved = (net(x, times, y)[0] - whole).abs().amax(-1) > 1e-6
    patch = tokens.coords(x).round().long() // 4
    assert torch.equal(
        moved, ((patch * torch.tensor([4, 2, 1])).sum(-1) == 5) & torch.tensor([[True], [False]])
    )
    assert torch.equal(tokens.sample_times(times, x)[..., 0] == 900, moved)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5), (2, 0), (3, 4), (1, 24), (2, 4, 1)])
def test_times_of_another_shape_are_refused_in_one_line(shape: tuple[int, ...]) -> None:
    net, x, y = of_router("token_choice"), torch.randn(2, 3, *GRID), torch.tensor([0, 1])
    line = r"^times must be \(2,\), one per sample, or \(2, n\) with n dividing 12, got [^\n]*$"
    with pytest.raises(ValueError, match=line):
        net(x, torch.zeros(shape), y)
    with pytest.raises(ValueError, match=line):
        net.tokens.sample_times(torch.zeros(shape), x)


@pytest.mark.parametrize("shape", [(), (3,), (2, 4), (1, 4), (2, 2, 1, 1)])
def test_the_process_takes_times_that_multiply_samples(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *GRID)
    for process in (FlowMatching("residual"), DDPM()):
        for work in (process.corrupt, process.target):
            if work == process.target and not isinstance(process, FlowMatching):
                continue  # of noise that is what it is at any time
            with pytest.raises(
                ValueError, match=r"^times must be \(2,\) or multiply samples of shape [^\n]*$"
            ):
                work(x, x, torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 3), (1, 7), (7,), (2, 1)])
def test_packed_rows_of_several_sizes_refuse_times_per_frame(shape: tuple[int, ...]) -> None:
    net = of_router("token_choice")
    layout = Layout.pack([(2, 2), (1, 2)], CPU)
    with pytest.raises(
        ValueError, match=r"^times must be \(2,\), one per sample, or \(1, 6\), one per token"
    ):
        net.predict(torch.randn(1, 6, 3), layout, torch.zeros(shape), torch.tensor([0, 1]))


def test_decoupled_expert_choice_scores_by_the_time_of_the_token() -> None:
    net = ExpertChoice(D, 4, decoupled=True)
    initialize_layers(net)
    x, context = batch()
    times = context.time[:, None].repeat(1, N, 1)
    times[0, 3] += 1
    changed = type(context)(
        context.t[:, None].repeat(1, N), times, times, context.layout, context.unmodulated
    )
    moved = (net(x, changed).scores != net(x, context).scores).any(-1)
    assert moved.nonzero().flatten().tolist() == [3]


def test_a_capacity_counts_the_tokens_of_a_sample_within_a_segment() -> None:
    inner = partial(TokenChoice, num_experts=2, top_k=1, capacity=1.0)
    net = TimestepExperts(D, [500], inner)
    initialize_layers(net)
    x, context = batch()
    t = torch.full((B, N), 100.0)
    t[:, :4] = 900.0
    wide = context.c[:, None].expand(-1, N, -1)
    routing = net(x, type(context)(t, wide, wide, context.layout, context.unmodulated))
    sample, segment = routing.token // N, routing.expert // 2
    for b in range(B):
        for s, tokens in ((0, 8), (1, 4)):
            load = torch.bincount(routing.expert[(sample == b) & (segment == s)], minlength=4)
            assert load.max() <= tokens / 2
