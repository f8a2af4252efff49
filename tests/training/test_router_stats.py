"""Health of mixtures: each number is its ideal where it should be, and a collapse is told once."""

import json
import math
from pathlib import Path

import pytest
import torch

from ditmoe.model import initialize_layers
from ditmoe.moe import Experts, Routing, TokenChoice
from ditmoe.training.router_stats import collapsed, health, tally
from tests.training.test_trainer import trainer

CPU = torch.device("cpu")

E, T = 8, 512


def routing(expert: torch.Tensor, scores: torch.Tensor) -> Routing:
    return Routing(torch.arange(len(expert)) % T, expert, torch.ones(len(expert)), scores)


def of(expert: torch.Tensor, scores: torch.Tensor | None = None) -> tuple[dict, torch.Tensor]:
    torch.manual_seed(0)
    router, experts = TokenChoice(16, E, 2), Experts(E, 16, 32, "swiglu")
    initialize_layers(router, experts)
    made = routing(expert, torch.full((T, E), 1 / E) if scores is None else scores)
    return health(made.counts.double(), made, router, experts), made.counts.double()


def test_even_and_collapsed_routings() -> None:
    even, counts = of(torch.arange(2 * T) % E)
    assert even["dead"] == 0
    assert even["effective"] == pytest.approx(E)
    assert even["entropy"] == pytest.approx(1)
    assert not collapsed(even, counts, active=2)
    two, counts = of(torch.arange(2 * T) % 2, torch.eye(E)[:2].repeat(T // 2, 1))
    assert two["dead"] == E - 2
    assert two["effective"] == pytest.approx(2)
    assert two["entropy"] == 0
    assert collapsed(two, counts, active=2)
    assert not collapsed(two, counts / 100, active=2)  # too few to tell
    assert not collapsed(two, counts, active=4)  # nothing is left to choose


def test_similarities() -> None:
    torch.manual_seed(0)
    router, experts = TokenChoice(16, E, 2), Experts(E, 512, 64, "gelu")
    initialize_layers(router, experts)
    made = routing(torch.arange(2 * T) % E, torch.rand(T, E))
    born = health(made.counts.double(), made, router, experts)
    assert abs(born["expert_similarity"]) < 0.01
    assert born["router_similarity"] < 1
    with torch.no_grad():
        router.weight[3] = 2 * router.weight[5]
        experts.up.copy_(experts.up[:1].expand_as(experts.up))
        experts.down.copy_(experts.down[:1].expand_as(experts.down))
    twins = health(made.counts.double(), made, router, experts)
    assert twins["router_similarity"] == pytest.approx(1)
    assert twins["expert_similarity"] == pytest.approx(1)


def test_a_tally_counts_all_assignments() -> None:
    made = routing(torch.randint(E, (2 * T,)), torch.rand(T, E))
    assert tally([made, made], CPU).sum() == 4 * T
    assert tally([], CPU).shape[0] == 0


def test_a_collapse_is_told_once_and_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    run, _ = trainer(
        tmp_path, "trainer.steps=4", "trainer.batch_size=32", "router.balance=0", "optimizer.lr=0"
    )
    with torch.no_grad():
        for router in run.model.routers:
            router.weight.zero_()  # all are liked alike: the first two are taken always
    run.run()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["dead/layer00"] for record in records] == [6] * 4
    assert all(record["effective/layer01"] == pytest.approx(2) for record in records)
    assert all(math.isclose(record["entropy/layer00"], 1) for record in records)
    told = capfd.readouterr().err
    assert told.count("warning: the routing of layer00 has collapsed: 2.0 of 8 experts do the work") == 1
    assert told.count("has collapsed") == 1
