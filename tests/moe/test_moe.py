"""What each router is for: balance that comes about, room that is kept, thresholds and assignments that are right."""

import copy
import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from ditmoe.model import Block, initialize_layers
from ditmoe.moe import (  # fmt: skip
    Base,
    BatchPool,
    Context,
    ExpertChoice,
    ExpertRace,
    MoE,
    Place,
    ReLU,
    Sinkhorn,
    Soft,
    TimeAware,
    TimestepExperts,
    TokenChoice,
)
from ditmoe.moe.losses import balance_loss, contrastive_loss, similarity_loss, z_loss
from ditmoe.moe.time_aware import GridConvolution
from ditmoe.moe.token_choice import capacity, within_capacity
from ditmoe.nn import Attention, Layout, modulate, normalize
from tests.routers import ROUTERS, B, D, E, N, Subject, batch, layer


def test_balance_is_one_when_even_and_e_when_collapsed() -> None:
    even, all_to_one = torch.full((4, 4), 0.25), torch.eye(4)[2].expand(4, 4)
    assert balance_loss(torch.tensor([1, 1, 1, 1]), even).item() == pytest.approx(1.0)
    assert balance_loss(torch.tensor([0, 0, 4, 0]), all_to_one).item() == pytest.approx(4.0)


def test_balance_loss_evens_out_the_load() -> None:
    moe, (x, context) = layer("token_choice"), batch(size=32)
    with torch.no_grad():
        moe.router.weight[0] += 1.0
    x = x + 0.5
    optimizer = torch.optim.Adam([moe.router.weight], lr=0.02)
    before = moe(x, context)[1].load.max()
    for _ in range(150):
        optimizer.zero_grad()
        moe(x, context)[1].losses["balance"].value.backward()
        optimizer.step()
    assert before > 0.4
    assert moe(x, context)[1].load.max() < 0.3


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
def test_a_bias_that_moves_evens_out_the_load_without_a_gradient() -> None:
    moe, (x, context) = layer("sigmoid and bias"), batch(size=32)
    moe.router.weight[0] += 1.0
    x = x + 0.5
    assert moe(x, context)[1].load.max() > 0.4
    weights = moe.router.weight.clone()
    for _ in range(200):
        moe.router.update([moe(x, context)[1].batch_stats])
    assert moe(x, context)[1].load.max() < 0.28
    assert moe(x, context)[1].load.min() > 0.22
    assert moe.router.bias.mean().abs() < 1e-6
    assert moe.router.bias[0] == moe.router.bias.min()
    assert torch.equal(moe.router.weight, weights)


def test_the_bias_chooses_but_does_not_weigh() -> None:
    moe, (x, context) = layer("sigmoid and bias"), batch()
    with torch.no_grad():
        moe.router.bias[1] = 100.0
    routing = moe.router(x, context)
    scores = torch.sigmoid(x.flatten(0, 1) @ moe.router.weight.T)
    pairs = routing.weight.view(-1, 2), routing.expert.view(-1, 2)
    assert (pairs[1] == 1).any(dim=1).all()
    chosen = scores.gather(1, pairs[1])
    assert torch.allclose(pairs[0], chosen / chosen.sum(-1, keepdim=True))


def test_sigmoid_scores_that_underflow_are_balanced_and_shared_all_the_same() -> None:
    router = TokenChoice(3, 3, 2, score="sigmoid", renormalize=True)
    with torch.no_grad():
        router.weight.copy_(torch.eye(3))
    x, context = torch.tensor([[[-200.0, -201.0, -300.0]] * 2]), batch(size=1)[1]
    routing = router(x, replace(context, layout=Layout.even((2,), 1, x.device)))
    assert torch.allclose(routing.weight, torch.tensor([1.0, -1.0]).sigmoid().repeat(2))
    assert routing.losses["balance"].value.item() == pytest.approx(1.5)  # two of three experts take all


def test_z_loss_is_the_mean_square_of_logsumexp() -> None:
    assert z_loss(torch.zeros(5, E)).item() == pytest.approx(math.log(E) ** 2)
    assert z_loss(torch.zeros(5, E) - math.log(E)).item() == pytest.approx(0.0, abs=1e-6)


def test_similarity_equals_a_double_loop_and_tells_pairs_that_go_together() -> None:
    p = torch.softmax(torch.randn(20, E), -1)
    chosen = (torch.rand(20, E) < 0.5).float()
    whom, like = chosen.T @ chosen, p.T @ p
    off = [(i, j) for i in range(E) for j in range(E) if i != j]
    total = sum(E * whom[i, i] / whom.trace() * like[i, i] for i in range(E))
    total += sum((E * E - E) * whom[i, j] / sum(whom[a, b] for a, b in off) * like[i, j] for i, j in off)
    assert torch.allclose(similarity_loss(p, chosen), total / 20)
    even = torch.full((8, 4), 0.25)
    mixed = torch.tensor(
        [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]] * 4
    )
    assert similarity_loss(even, mixed[:8].float()).item() == pytest.approx(1.0)
    twins = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]] * 4)
    crossed = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]] * 2)
    assert similarity_loss(twins, (twins > 0).float()) > similarity_loss(crossed, (crossed > 0).float()) * 1.2


def test_the_contrastive_loss_equals_a_double_loop_and_moves_tokens_too() -> None:
    torch.manual_seed(0)
    p, x = torch.randn(E, D, requires_grad=True), torch.randn(9, D, requires_grad=True)
    taken = [0, 2, 2, 0, 3, 3, 3, 0, 2]  # expert 1 has no token
    chosen = F.one_hot(torch.tensor(taken), E).float()
    used = sorted(set(taken))
    means = {e: x[torch.tensor(taken) == e].mean(0) for e in used}
    rows = [[F.cosine_similarity(p[i], means[j], dim=0) / 0.5 for j in used] for i in used]
    expected = F.cross_entropy(torch.stack([torch.stack(row) for row in rows]), torch.arange(len(used)))
    found = contrastive_loss(p, x, chosen, 0.5)
    assert torch.allclose(found, expected)
    found.backward()
    assert x.grad.norm(dim=1).min() > 0
    assert p.grad.norm(dim=1).gt(0).tolist() == [True, False, True, True]
    for alone in (chosen[:1], chosen[:0]):
        assert contrastive_loss(p, x[: len(alone)], alone, 0.5) == 0


def test_a_pass_balances_with_those_before_it_in_its_step() -> None:
    for name in ("token_choice", "segments, token_choice"):
        moe, (x, context) = layer(name), batch(name)
        first, second = moe.router(x, context), moe.router(-x, context)
        moe.router.before_pass([first.batch_stats])
        later = moe.router(-x, context).losses["balance"].value
        assert later != second.losses["balance"].value
        moe.router.before_pass([])
        assert moe.router(-x, context).losses["balance"].value == second.losses["balance"].value
        if name == "token_choice":
            assert later == balance_loss(first.counts + second.counts, second.scores)


@torch.no_grad()
def test_the_capacity_falls_over_the_steps_and_over_the_noise() -> None:
    router, (x, context) = ExpertChoice(D, E, 1.0, sparsify=[1, 3]), batch()
    rooms = []
    for _ in range(5):
        rooms.append(len(router(x, context).token) / (B * N))
        router.update([])
    assert rooms == [4.0, 4.0, 32 / 12, 1.0, 1.0]  # 2.5 rounded up for each expert
    pool = BatchPool(D, E, 2.0, sparsify=[0, 2])
    pool.sparsified.step.fill_(1)
    initialize_layers(pool)
    assert len(pool(x, context).token) == 3 * B * N
    router = ExpertChoice(D, E, 2.0, by_time=0.5)  # at times 100, 500 and 900
    counts = torch.bincount(router(x, context).token // N).tolist()
    assert counts == [E * math.ceil(2 * f * N / E) for f in (1.4, 1.0, 0.6)]


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


@pytest.mark.parametrize("priority", [True, False])
@pytest.mark.parametrize("room", [1, 3, N])
def test_room_goes_to_first_choices_and_within_them_to_the_best(priority: bool, room: int) -> None:
    scores = torch.softmax(2 * torch.randn(B * N, E), -1)
    expert = scores.topk(2, dim=-1).indices
    layout = Layout.even((N,), B, scores.device)
    kept = within_capacity(scores, expert, layout, room * E / N, priority)
    for b in range(B):
        here = slice(b * N, (b + 1) * N)
        for e in range(E):
            wants = [(n, k) for k in range(2) for n in range(N) if expert[here][n, k] == e]
            wants.sort(key=lambda nk: (nk[1], -scores[here][nk[0]].max() if priority else nk[0]))
            assert [bool(kept[here][n, k]) for n, k in wants] == [i < room for i in range(len(wants))]


def test_dropped_assignments_are_counted() -> None:
    moe, (x, context) = layer("capacity"), batch()
    routing = moe.router(x, context)
    assert routing.dropped > 0
    assert routing.dropped + len(routing.token) == 2 * B * N
    assert routing.batch_stats["counts"].sum() == 2 * B * N
    roomy = TokenChoice(D, E, 2, capacity=float(E))
    initialize_layers(roomy)
    assert roomy(x, context).dropped == 0


def test_expert_choice_is_balanced_and_leaves_tokens_out() -> None:
    moe, (x, context) = layer("small capacity"), batch(size=8)
    routing = moe.router(x, context)
    assert routing.counts.tolist() == [8 * math.ceil(1.5 * N / E)] * E
    taken = torch.zeros(8 * N).index_add(0, routing.token, torch.ones(len(routing.token)))
    assert routing.unrouted.item() == pytest.approx((taken == 0).float().mean().item(), abs=1e-6)
    assert 0 < routing.unrouted < 1
    assert taken.max() > 2


def test_expert_choice_may_have_a_capacity_for_each_layer() -> None:
    active = []
    for index in range(3):
        router = ExpertChoice(D, E, [4.0, 2.0, 1.0])
        router.bind(Place(index, 3, 6, 2))
        active.append(router.active)
    assert active == [4.0, 2.0, 1.0]
    with pytest.raises(ValueError, match="one entry for each of 2 layers with experts, got 3"):
        ExpertChoice(D, E, [4.0, 2.0, 1.0]).bind(Place(0, 2, 6, 2))


def test_room_is_not_rounded_up_by_round_off() -> None:
    assert capacity(1.1, 100, 10) == 11
    assert capacity(1.11, 100, 10) == 12


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


def test_a_pool_without_room_names_its_numbers() -> None:
    pool, (x, context) = BatchPool(D, E, 0.001), batch()
    initialize_layers(pool)
    with pytest.raises(ValueError, match=r"at least one token per expert, got 0\.001 experts for each of"):
        pool(x, context)


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


def test_relu_is_steered_to_its_number_of_experts() -> None:
    torch.manual_seed(0)
    moe = MoE(ReLU(D, 8, 2, start=1e-3, step=1.2), D, 24, 0, "swiglu")
    initialize_layers(moe)
    x, context = batch(size=16)
    target = torch.randn_like(x)
    optimizer = torch.optim.Adam(moe.parameters(), lr=0.01)
    used = []
    for _ in range(250):
        optimizer.zero_grad()
        out, routing = moe(x, context)
        loss = routing.losses["sparsity"]
        ((out - target).square().mean() + loss.coefficient * loss.value).backward()
        optimizer.step()
        moe.router.update([routing.batch_stats])
        used.append(len(routing.token) / len(routing.scores))
    assert used[0] > 3
    assert sum(used[-50:]) / 50 == pytest.approx(2, abs=0.3)


@torch.no_grad()
def test_base_is_the_best_assignment_and_every_round_is_even() -> None:
    router = Base(D, 3, 2)
    logits = torch.randn(6, 3)
    chosen = router.choose(logits, logits.sigmoid(), Layout.even((6,), 1, logits.device))
    even = [a for a in itertools.product(range(3), repeat=6) if all(a.count(e) == 2 for e in range(3))]
    best = max(sum(logits[n, e] for n, e in enumerate(a)) for a in even)
    assert torch.allclose(logits.gather(1, chosen[:, :1]).sum(), best)
    for name in ("base",):
        moe, (x, context) = layer(name), batch()
        moe.router.weight[0] += 2.0
        expert = moe.router(x + 1, context).expert.view(B, N, 2)
        assert (expert[..., 0] != expert[..., 1]).all()
        for sample, k in itertools.product(range(B), range(2)):
            assert torch.bincount(expert[sample, :, k], minlength=E).tolist() == [N // E] * E


@torch.no_grad()
def test_sinkhorn_is_evener_than_free_choice() -> None:
    x, context = batch(size=16)
    loads = {}
    for name, kind in {"token_choice": TokenChoice, "sinkhorn": Sinkhorn}.items():
        moe = layer(Subject(partial(kind, num_experts=E, top_k=2)))
        moe.router.weight[0] += 1.0
        loads[name] = moe.router(x + 0.5, context).load.max().item()
    assert loads["token_choice"] > 0.4
    assert loads["sinkhorn"] < 0.35


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


@pytest.mark.parametrize(
    "router",
    [TokenChoice(D, 64, 1, capacity=0.5), ExpertChoice(D, 64, 2.0)],
    ids=["token_choice", "expert_choice"],
)
def test_a_capacity_below_one_token_names_its_numbers(router) -> None:
    initialize_layers(router)
    with pytest.raises(ValueError, match=r"at least one token per expert, got .*12 tokens, over 64 experts"):
        router(*batch())


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
