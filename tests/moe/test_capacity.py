"""An expert takes as many tokens as it has room for, and the right ones; what is dropped is counted."""

import math

import pytest
import torch

from ditmoe.model import initialize_layers
from ditmoe.moe import (  # fmt: skip
    BatchPool,
    ExpertChoice,
    Place,
    TokenChoice,
)
from ditmoe.moe.token_choice import capacity, within_capacity
from ditmoe.nn import Layout
from tests.routers import B, D, E, N, batch, layer


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


def test_a_pool_without_room_names_its_numbers() -> None:
    pool, (x, context) = BatchPool(D, E, 0.001), batch()
    initialize_layers(pool)
    with pytest.raises(ValueError, match=r"at least one token per expert, got 0\.001 experts for each of"):
        pool(x, context)


@pytest.mark.parametrize(
    "router",
    [TokenChoice(D, 64, 1, capacity=0.5), ExpertChoice(D, 64, 2.0)],
    ids=["token_choice", "expert_choice"],
)
def test_a_capacity_below_one_token_names_its_numbers(router) -> None:
    initialize_layers(router)
    with pytest.raises(ValueError, match=r"at least one token per expert, got .*12 tokens, over 64 experts"):
        router(*batch())
