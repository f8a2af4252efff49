"""What each router is for beside balance and capacity: thresholds, competition, mixtures, noise and time."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ditmoe.model import Block, initialize_layers
from ditmoe.moe import (  # fmt: skip
    BatchPool,
    Context,
    ExpertChoice,
    ExpertRace,
    MoE,
    ReLU,
    Sinkhorn,
    Soft,
    TimeAware,
    TimestepExperts,
    TokenChoice,
)
from ditmoe.moe.time_aware import GridConvolution
from ditmoe.nn import Attention, Layout, modulate, normalize
from tests.routers import ROUTERS, B, D, E, N, batch, layer


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("grid", [(7,), (2, 3), (2, 2, 2), (3, 4, 6)])
def test_the_convolution_has_the_same_gradient_in_half_precision(grid: tuple[int, ...], kernel: int) -> None:
    branch = GridConvolution(16, kernel, len(grid))
    layout, c = Layout.even(grid, 2, torch.device("cpu")), torch.zeros(2, 16)
    context = Context(torch.zeros(2), c, c, layout, torch.zeros(2, 1, 16))
    torch.manual_seed(0)
    x, dy = torch.randn(2, 2, math.prod(grid), 16).bfloat16()

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        branch.weight.grad = None
        # What is freed here is what a gradient that nobody writes would be made of.
        del [torch.full((size,), math.nan) for size in range(100, 20_000, 100)][:]
        branch(x.to(dtype), context).backward(dy.to(dtype))
        return branch.weight.grad

    exact = gradient(torch.float32)
    assert (gradient(torch.bfloat16) - exact).abs().max() < 0.02 * exact.abs().max()


@torch.no_grad()
def test_decoupled_scores_see_a_time_embedding_of_any_size() -> None:
    moe, (x, context) = layer("decoupled"), batch()
    small = replace(context, time=context.time * 0.02)
    assert torch.allclose(moe.router(x, small).scores, moe.router(x, context).scores, atol=2e-3)


def test_noise_is_for_training_alone() -> None:
    moe, (x, context) = layer("token_choice"), batch()
    moe.router.noise = 3.0
    first, second = (moe.train().router(x, context).scores for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (moe.eval().router(x, context).scores for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(5)
    first = moe.train().router(x, context).scores
    torch.manual_seed(5)
    assert torch.equal(first, moe.router(x, context).scores)


def test_weights_are_numbers_even_where_nobody_is_liked() -> None:
    context = replace(batch()[1], layout=Layout.even((3,), 1, torch.device("cpu")))
    choice = ExpertChoice(3, 3, 1.0, renormalize=True)
    with torch.no_grad():
        choice.weight.copy_(torch.eye(3))
    tokens = torch.tensor([[[50.0, 50, -100], [100, 0, -100], [0, 100, -100]]])
    assert choice(tokens, context).weight.isfinite().all()
    sigmoid = TokenChoice(3, 3, 2, score="sigmoid", renormalize=True)
    with torch.no_grad():
        sigmoid.weight.copy_(torch.eye(3))
    found = sigmoid(torch.full((1, 2, 3), -120.0), context)
    assert found.weight.isfinite().all()
    assert found.scores.isfinite().all()


def test_a_decoupled_router_does_not_see_the_modulation() -> None:
    moe, (x, context) = layer("decoupled"), batch()
    assert torch.equal(moe.router(x, context).scores, moe.router(10 * x + 3, context).scores)


@torch.no_grad()
def test_the_pools_thresholds_follow_a_moving_average() -> None:
    for name in ("batch_pool", "race"):
        moe, (x, context) = layer(name), batch()
        first = moe.router(x, context).batch_stats
        moe.router.update([first])
        assert torch.equal(moe.router.threshold.value, first["threshold"])
        second = moe.router(2 * x, context).batch_stats
        moe.router.update([second])
        expected = 0.95 * first["threshold"] + 0.05 * second["threshold"]
        assert torch.allclose(moe.router.threshold.value, expected)


def test_the_predictor_of_a_batch_pool_learns_who_is_taken_and_moves_nothing_else() -> None:
    moe, (x, context) = layer("batch_pool"), batch(size=16)
    x.requires_grad_()
    moe.router(x, context).losses["predictor"].value.backward()
    assert x.grad is None or not x.grad.any()
    assert moe.router.weight.grad is None
    optimizer = torch.optim.Adam(moe.router.parameters(), lr=0.01)
    for _ in range(400):
        optimizer.zero_grad()
        routing = moe.router(x, context)
        routing.losses["predictor"].value.backward()
        optimizer.step()
    moe.router.update([routing.batch_stats])
    trained, sampled = ({*zip(r.token.tolist(), r.expert.tolist(), strict=True)} for r in (
        moe.train().router(x, context), moe.eval().router(x, context)))  # fmt: skip
    assert len(trained & sampled) > 0.9 * len(trained)


def test_a_race_lets_tokens_compete_over_the_whole_batch() -> None:
    moe, (x, context) = layer("race"), batch()
    logits = moe.router.second(torch.nn.functional.gelu(moe.router.first(x))).flatten(0, 1)
    routing = moe.router(x, context)
    assert len(routing.token) == 2 * B * N
    others = logits.clone()
    others[routing.token, routing.expert] = -math.inf
    assert routing.weight.min() >= others.max()
    assert torch.equal(routing.weight, logits[routing.token, routing.expert])


def test_soft_mixes_are_convex() -> None:
    moe, (x, context) = layer("soft"), batch()
    routing = moe.router(x, context)
    assert torch.allclose(routing.mix.view(B, N, E, -1).sum(1), torch.ones(B, E, moe.router.slots))
    assert torch.allclose(routing.back.sum((1, 2)), torch.ones(B * N))
    assert routing.counts.tolist() == [moe.router.slots * B] * E


def test_experts_of_a_noise_segment_serve_it_alone() -> None:
    moe, (x, context) = layer("segments"), batch()
    assert moe.router(x, context).counts.tolist() == [N, N, N]  # t = 100, 500, 900 and edges at 300, 700
    edge = copy.replace(context, t=torch.tensor([299.9, 300.0, 700.0])) if hasattr(copy, "replace") else None
    if edge is not None:
        assert moe.router(x, edge).counts.tolist() == [N, N, N]


def test_segments_count_their_losses_by_their_share_of_the_samples() -> None:
    moe, (x, context) = layer("segments, token_choice"), batch()
    routing = moe.router(x, context)  # t = 100 is below the edge, 500 and 900 are not
    inside = [
        type(context)(
            *(v[h] for v in (context.t, context.time, context.c)),
            context.layout.take(h),
            context.unmodulated[h],
        )
        for h in ([0], [1, 2])
    ]
    parts = [
        r(x[h], c).losses["balance"].value
        for r, h, c in zip(moe.router.routers, ([0], [1, 2]), inside, strict=True)
    ]
    assert torch.allclose(routing.losses["balance"].value, parts[0] / 3 + 2 * parts[1] / 3)
    assert routing.losses["balance"].coefficient == 0.01


@torch.no_grad()
def test_diff_moe_sees_the_stream_behind_a_convolution_that_the_shortcut_goes_around() -> None:
    moe, (x, context) = layer("diff_moe"), batch("diff_moe")
    block = Block(D, Attention(D, 2), moe)
    for parameter in block.parameters():
        parameter.normal_(std=0.3)
    _, _, gate1, shift, scale, gate = block.modulation(context.c, context.layout)
    first = block.modulation(context.c, context.layout)[:2]
    h = x + gate1 * block.attention(modulate(normalize(x), *first))
    grid, stem = context.layout.grids[0], block.stem
    seen = F.conv2d(h.mT.unflatten(2, grid), stem.weight, stem.bias, padding=1, groups=D).flatten(2).mT
    expected = h + gate * moe(modulate(normalize(seen), shift, scale), context)[0]
    assert stem.weight.shape[2:] == (3, 3)
    assert torch.allclose(block(x, context, context.c)[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["diff_moe", "time_aware"])
def test_experts_that_know_the_time_start_as_their_input_and_answer_to_it(name: str) -> None:
    moe, (x, context) = layer(name, shared=0), batch(name)
    changed = type(context)(context.t, context.time, context.c + 1, context.layout, context.unmodulated)
    assert not torch.allclose(moe(x, context)[0], moe(x, changed)[0], atol=1e-3)
    fresh = MoE(moe.router, D, 24, 0, "swiglu")
    initialize_layers(fresh)
    out, routing = fresh(x, context)
    weight = torch.zeros(B * N).index_add(0, routing.token, routing.weight)
    assert torch.allclose(out.flatten(0, 1), weight[:, None] * x.flatten(0, 1), atol=1e-6)


def test_an_expert_nobody_chose_is_no_obstacle() -> None:
    moe, (x, context) = layer("top 1"), batch()
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[2] = 1.0
    out, routing = moe(x.abs(), context)
    assert routing.counts.tolist() == [0, 0, B * N, 0]
    out.sum().backward()
    assert not moe.experts.up.grad[0].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenChoice(D, E, 0), "top_k must lie between 1 and num_experts = 4, got 0"),
        (lambda: TokenChoice(D, E, 5), "num_experts = 4, got 5"),
        (lambda: TokenChoice(D, E, 2, score="tanh"), "score must be softmax or sigmoid, got 'tanh'"),
        (lambda: TokenChoice(D, E, 2, capacity=0), "capacity must be above 0, got 0"),
        (lambda: TokenChoice(D, E, 2, noise=-1), "noise must be at least 0, got -1"),
        (lambda: TokenChoice(D, E, 2, bias_rate=-0.1), "bias_rate must be at least 0, got -0.1"),
        (lambda: Sinkhorn(D, E, 2, bias_rate=0.1), "bias_rate is not for sinkhorn"),
        (lambda: ExpertChoice(D, E, []), r"capacity must be one number, or one for each layer, got \[\]"),
        (lambda: ExpertChoice(D, E, 4.5), "not above num_experts = 4, got 4.5"),
        (lambda: BatchPool(D, E, 0), "above 0 and not above num_experts = 4, got 0"),
        (lambda: BatchPool(D, E, momentum=1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: ExpertRace(D, E, 5), "num_experts = 4, got 5"),
        (lambda: Soft(D, E, 0), "slots must be above 0, got 0"),
        (lambda: Sinkhorn(D, E, 2, temperature=0), "temperature must be above 0, got 0"),
        (lambda: ReLU(D, E, 2, step=1.0), "step must be above 1, got 1.0"),
        (lambda: TimestepExperts(D, [700, 300]), r"ascend between 0 and 1000, got \[700, 300\]"),
        (lambda: TimestepExperts(D, [0]), "ascend between 0 and 1000"),
        (lambda: TimeAware(D, E, 2, kernel=4), "kernel must be odd, or 0 for no convolution, got 4"),
    ],
)
def test_options_must_fit(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(ROUTERS))
@torch.no_grad()
def test_the_gpu_equals_the_cpu(name: str) -> None:
    moe, (x, context) = layer(name), batch(name)
    moe.router.update([moe(x, context)[1].batch_stats])
    there = type(context)(
        *(v.cuda() for v in (context.t, context.time, context.c)),
        replace(context.layout, device=torch.device("cuda")),
        context.unmodulated.cuda(),
    )
    on_gpu = copy.deepcopy(moe).cuda()
    assert torch.allclose(on_gpu.eval()(x.cuda(), there)[0].cpu(), moe.eval()(x, context)[0], atol=1e-3)
