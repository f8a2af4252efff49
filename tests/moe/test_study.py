"""Studies of routers, learning rates and coordinates: their statistics and controls, and that they claim no more."""

from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.quality.coordinates import BASE, SEEN, grouped, table
from benchmarks.quality.lr_transfer import summary
from benchmarks.quality.paired import holm, interval, least_detectable, p_value
from benchmarks.quality.router_controls import ConvolvedChoice, OneExpert, RandomChoice
from benchmarks.quality.router_table import MARK, section, written
from benchmarks.quality.routers import REFERENCE, WITHIN, fitted, further_rates, train
from ditmoe.moe import TokenChoice
from ditmoe.training import Trainer
from tests.routers import B, E, N, Subject, batch, layer

two = {"num_experts": E, "top_k": 2}


def test_statistics_say_what_tables_say() -> None:
    values = [1.0, 2.0, 4.0]
    mean, half = interval(values)
    assert (mean, half) == (
        pytest.approx(7 / 3),
        pytest.approx(4.303 * np.std(values, ddof=1) / 3**0.5, rel=1e-3),
    )
    assert p_value(values) == pytest.approx(0.1181, abs=1e-3)  # t = 2.65 at two degrees of freedom
    assert p_value([2.0]) == 1
    assert p_value([0.0, 0.0]) == 1
    assert p_value([1.0, 1.0]) == 0
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_the_least_detectable_difference_is_found_as_often_as_it_says() -> None:
    g, n, tests = np.random.default_rng(0), 6, 3
    spread = [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]
    true = least_detectable(spread, tests)
    drawn = true + np.std(spread, ddof=1) * g.standard_normal((2000, n))
    found = np.mean([p_value(row) < 0.05 / tests for row in drawn])
    assert 0.75 < found < 0.92


def test_one_expert_under_many_numbers_is_one_layer_with_the_sum_of_the_weights() -> None:
    moe, (x, context) = layer(Subject(partial(OneExpert, **two))), batch()
    y, routing = moe(x, context)
    h = x.flatten(0, 1)
    gate, up = (h @ moe.experts.up[0].T).chunk(2, dim=-1)
    alone = (torch.nn.functional.silu(gate) * up) @ moe.experts.down[0].T
    weight = torch.zeros(B * N).index_add(0, routing.token, routing.weight)
    expected = moe.shared(x) + (weight[:, None] * alone).view(x.shape)
    assert torch.allclose(y, expected, atol=1e-5)
    y.sum().backward()
    assert moe.experts.up.shape[0] == 1
    assert moe.experts.up.grad.abs().min() > 0


def test_random_choice_spreads_tokens_evenly_and_asks_nothing_but_the_token() -> None:
    moe, (x, context) = layer(Subject(partial(RandomChoice, **two, balance=0.0))), batch(size=B)
    large = batch(size=64)
    load = moe.router(*large).load
    assert (load - 1 / E).abs().max() < 0.05
    one = moe(x[:1], batch(size=1)[1])[0]
    assert torch.allclose(moe(x, context)[0][:1], one, atol=1e-6)
    assert all(p.requires_grad for p in moe.parameters())
    assert "router.directions" in dict(moe.named_buffers())


def test_convolved_choice_without_its_convolution_is_token_choice() -> None:
    convolved, (x, context) = layer(Subject(partial(ConvolvedChoice, **two))), batch()
    plain = layer(Subject(partial(TokenChoice, **two)))
    plain.load_state_dict(convolved.state_dict(), strict=False)
    assert not torch.allclose(convolved(x, context)[0], plain(x, context)[0], atol=1e-3)
    torch.nn.init.zeros_(convolved.branch.weight)
    assert torch.allclose(convolved(x, context)[0], plain(x, context)[0], atol=1e-6)


def test_work_is_matched_by_counting() -> None:
    for name in ("race", "soft"):
        fit = fitted("image", name, 32)
        assert abs(fit["work"][0] - 1) <= WITHIN, name
        assert fit["ratio"] < 1, name
    assert fitted("image", "dense, twice as wide", 32)["work"][0] > 1.3


def test_a_run_that_was_stopped_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "run", lambda trainer: False)
    common = {"task": "image", "steps": 2, "base": 32, "width": 32, "draw": 0, "seed": 0, "tuning": True}
    with pytest.raises(SystemExit):
        train({**common, "name": REFERENCE, "rate": 0.01})


def test_learning_rates_are_compared_on_seeds_that_all_have_seen() -> None:
    runs = [
        {"mup": mup, "width": width, "rate": rate, "seed": seed, "loss": abs(rate - 2) + 0.1 * seed}
        for width, mup in ((32, True), (64, True), (128, True))
        for rate in (1.0, 2.0)
        for seed in range(3)
        if not (width == 64 and rate == 2 and seed == 2) and not (width == 128 and rate == 1)
    ]
    rows = summary(runs, 32)
    assert [(row["width"], row["seeds"], row["best"], row["cost of it"]) for row in rows] == [
        (32, 3, 2.0, 0.0),
        (64, 2, 2.0, 0.0),
    ]


def run(name: str, seed: int, loss: float) -> dict:
    told = {
        "tuning": False,
        "rate": 0.01,
        "seconds": 1.0,
        "parameters": 1000,
        "work": [1.0, 1.0],
        "memory": 1.0,
    }
    return {"name": name, "seed": seed, "loss": loss, "bins": [loss] * 4, **told}


def test_no_verdict_without_the_control_and_none_on_what_is_not_told_apart() -> None:
    noise = np.random.default_rng(0).normal(0, 0.001, (4, 5))
    means = {"dense": 0.6, "dense, twice as wide": 0.5, REFERENCE: 0.6, "better": 0.55}
    runs = [
        run(name, seed, mean + noise[i, seed])
        for i, (name, mean) in enumerate(means.items())
        for seed in range(5)
    ]
    text = section(runs)
    assert "lower: `better`." in text
    assert "not told apart: `dense`." in text
    slow = [r | {"seconds": 1.5, "parameters": 2000} if r["name"] == REFERENCE else r for r in runs]
    losses = {r["seed"]: r["loss"] for r in runs if r["name"] == REFERENCE}
    mean, half = interval([losses[r["seed"]] - r["loss"] for r in runs if "twice" in r["name"]])
    told = "1.50 of its time, 1.00 of its multiply-adds, 2.00 of its weights and 1.00 of the activations"
    assert f"`token choice` is at {mean:+.4f} ± {half:.4f} (p" in section(slow)
    assert told in section(slow)
    blind = [r | {"loss": 0.6 + noise[1, r["seed"]]} if "twice" in r["name"] else r for r in runs]
    text = section(blind)
    assert "cannot tell better from worse" in text
    assert "lower" not in text
    assert "verdict" not in text
    begin, end = (MARK.format(which, "image") for which in ("begin", "end"))
    page = f"before {begin} old {end} after"
    assert written(written(page, "new", "image"), "newer", "image") == f"before {begin}\nnewer\n{end} after"
    with pytest.raises(ValueError, match="must have one"):
        written(page, "new", "video")


def test_rates_are_tried_beyond_the_edges_and_what_is_still_at_one_is_marked() -> None:
    def tuning(name: str, losses: dict[float, float]) -> list[dict]:
        return [run(name, 1000, loss) | {"tuning": True, "rate": rate} for rate, loss in losses.items()]

    least, middle = {1.0: 0.1, 2.0: 0.2, 4.0: 0.3}, {1.0: 0.2, 2.0: 0.1, 4.0: 0.3}
    runs = tuning("least", least) + tuning("middle", middle) + tuning("largest", {1.0: 0.2, 2.0: 0.1})
    assert further_rates(runs) == {"least": 0.5, "largest": 4.0}
    assert further_rates(runs + tuning("least", {0.5: 0.2})) == {"largest": 4.0}
    assert further_rates(runs + tuning("largest", {4.0: 0.3})) == {"least": 0.5}
    compared = [run("least", s, 0.1) | {"rate": 1.0} for s in range(2)]
    compared += [run("middle", s, 0.1) | {"rate": 2.0} for s in range(2)]
    lines = section(runs + compared).splitlines()
    assert [line.split(" | ")[2] for line in lines[2:4]] == ["1 (edge)", "2"]


def test_growth_over_widths_is_that_of_the_seeds_that_have_both() -> None:
    def point(width: int, seed: int, size: float, mup: bool = True) -> dict:
        told = {"modality": "image", "router": "race", "width": width, "seed": seed, "mup": mup}
        return {**told, "after": dict.fromkeys(SEEN, size)}

    points = [point(BASE, 0, 1.0), point(BASE, 1, 2.0), point(2 * BASE, 0, 4.0), point(2 * BASE, 1, 2.0)]
    points += [point(4 * BASE, 1, 3.0), point(BASE, 0, 1.0, False), point(4 * BASE, 0, 90.0, False)]
    text, rows = table(grouped(points))
    assert rows[0]["growth"]["stream"] == {2 * BASE: pytest.approx(2.0), 4 * BASE: pytest.approx(1.5)}
    assert text.splitlines()[-1].startswith(f"| image, race | {4 * BASE} | 90.00 | 1.50 | 1.50 |")
    assert text.splitlines()[-1].endswith(f"| 2.00 (stream, {2 * BASE}) |")
    assert table(grouped(points[2:]))[1][0]["mup"] is False  # muP without its base says nothing
    silent, _ = table(grouped([*points, point(2 * BASE, 0, 0.0)]))  # as relu is where all its scores are zero
    assert silent.endswith(f"| 0.00 (stream, {2 * BASE}) |")
