"""Experts come to be used alike: by losses, by biases that move, and by assignments that are even."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from ditmoe.model import initialize_layers
from ditmoe.moe import (  # fmt: skip
    Base,
    MoE,
    ReLU,
    Sinkhorn,
    TokenChoice,
)
from ditmoe.moe.losses import balance_loss, contrastive_loss, similarity_loss, z_loss
from ditmoe.nn import Layout
from tests.routers import B, D, E, N, Subject, batch, layer


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
