"""What is optimised: weights over time mean the same whatever is predicted, masks leave out, parts add up."""

from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from ditmoe.config import build, cli
from ditmoe.config.compose import composed
from ditmoe.diffusion import DDPM, FlowMatching, Objective, Prediction, Process
from ditmoe.diffusion.objective import WEIGHTINGS, linear_parts
from ditmoe.diffusion.process import expand
from tests import subjects

Added = namedtuple("Added", "losses aux_prediction aux_coefficient", defaults=({}, None, 0.0))
Loss = namedtuple("Loss", "value coefficient")


def processes() -> dict[str, Process]:
    """Every process YAML with each of its predictions."""
    files = [f.stem for f in (cli.config_folder() / "process").glob("*.yaml")]
    found = {}
    for name in files:
        for prediction in ("velocity", "residual", "epsilon", "v"):
            config = composed("train", [f"process={name}", f"process.prediction={prediction}"])
            try:
                found[f"{name}, {prediction}"] = build.make(config["process"])
            except ValueError:  # not one of this process
                continue
    return found


PROCESSES = processes()
TIMES = torch.tensor([3.0, 40.0, 250.0, 500.0, 750.0, 960.0, 999.0])


def clean(process: Process, x_t: torch.Tensor, output: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The sample that an output means, by the equations of diffusion/process.py."""
    said = process.to_scheduler_output(output, x_t, t)
    if isinstance(process, FlowMatching):
        return x_t - expand(t / 1000, x_t) * said
    a, b = process._mix(t, x_t)
    return (x_t - b * said) / a if process.prediction == "epsilon" else a * x_t - b * said


def test_every_prediction_is_there() -> None:
    found = {(type(p), p.prediction) for p in PROCESSES.values()}
    assert found == {(FlowMatching, "velocity"), (FlowMatching, "residual"), (DDPM, "epsilon"), (DDPM, "v")}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_weight_of_the_sample_is_carried_over_to_what_is_predicted(name: str) -> None:
    process, g = PROCESSES[name], torch.Generator().manual_seed(0)
    x0, noise, wrong = (torch.randn(len(TIMES), 500, generator=g) for _ in range(3))
    x_t, target = (of(x0, noise, TIMES) for of in (process.corrupt, process.target))
    assert torch.allclose(clean(process, x_t, target, TIMES), x0, atol=2e-2)
    a, b, _, _ = linear_parts(process, TIMES.double())
    snr = (a / b).square()
    output = target + 0.3 * wrong
    of_sample = (clean(process, x_t.double(), output.double(), TIMES) - x0).square().mean(1)
    of_output = (output - target).double().square().mean(1)
    wanted = {
        "min_snr": snr.clamp(max=5.0),
        "sigmoid": 5 * torch.sigmoid(snr.log() - torch.tensor(5.0).log()),
    }
    for weighting, weight in wanted.items():
        weights = Objective(process, weighting).weights(TIMES)
        # a DDPM's cumulated product is float32, so the smallest times are known to a few digits
        assert torch.allclose(weights.double() * of_output, weight * of_sample, rtol=2e-2), weighting


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_are_finite_at_the_ends(name: str, weighting: str) -> None:
    ends = torch.tensor([0.0, 999.0 if isinstance(PROCESSES[name], DDPM) else 1000.0])
    weights = Objective(PROCESSES[name], weighting).weights(ends)
    assert weights is None if weighting == "uniform" else weights.isfinite().all() and (weights >= 0).all()


def prediction(t: torch.Tensor, seed: int = 0, **more) -> Prediction:
    g = torch.Generator().manual_seed(seed)
    output, target = (torch.randn(4, 3, 6, 5, generator=g) for _ in range(2))
    return Prediction(output, target, t, more.pop("share", output.numel()), **more)


def test_the_default_is_the_mean_square_to_the_bit() -> None:
    given = prediction(torch.rand(4, 1, 1, 1) * 1000)
    said = Objective(FlowMatching())(given)
    assert said.total == (given.output - given.target).square().sum() / given.output.numel()
    assert said.total == said.parts["loss"]
    assert torch.allclose(said.each.flatten(), (given.output - given.target).square().mean((1, 2, 3)))


@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (4, 1, 6, 1), (1, 1, 6, 1), (4, 3, 6, 5)])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_value_for_each_time_makes_up_the_loss(shape: tuple, weighting: str) -> None:
    """For a time for each sample, for each place along an axis, for each row of a packed batch, for each number."""
    t = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 999
    mask = (torch.rand(4, 1, 6, 1, generator=torch.Generator().manual_seed(2)) < 0.6).float()
    counted = mask.expand(4, 3, 6, 5)
    objective = Objective(FlowMatching(), weighting)
    said = objective(prediction(t, mask=mask, share=counted.sum().item()))
    assert said.each.shape == said.counted.shape == t.shape
    assert said.counted.sum() == counted.sum()
    weights = objective.weights(t)
    weighted = said.each * said.counted * (1 if weights is None else weights)
    assert torch.allclose(weighted.sum() / counted.sum(), said.total, rtol=1e-5)


@pytest.mark.parametrize("name", subjects.find("objective"))
@pytest.mark.parametrize("process", PROCESSES)
def test_every_yaml_asks_for_the_target_and_counts_what_it_says(process: str, name: str) -> None:
    section = subjects.section("objective", name, subjects.find("objective")[name])
    objective, t = build.make(section, process=PROCESSES[process]), TIMES[:4].view(4, 1, 1, 1)
    given = prediction(t)
    said, met = objective(given), objective(replace(given, output=given.target))
    assert met.total == 0
    assert said.total.isfinite()
    assert said.total > 0
    assert said.each.shape == t.shape
    for i in range(4):  # a sample is measured by itself
        one = {key: getattr(given, key)[i : i + 1] for key in ("output", "target", "t")}
        assert torch.allclose(objective(replace(given, **one)).each, said.each[i : i + 1])


def test_what_is_masked_changes_nothing_and_the_rest_is_a_mean() -> None:
    t, mask = torch.full((4, 1, 1, 1), 500.0), torch.ones(4, 1, 6, 1)
    mask[0], mask[2, :, 3:] = 0, 0
    given = prediction(t, mask=mask, share=mask.expand(4, 3, 6, 5).sum().item())
    output = given.output.clone().requires_grad_()
    said = Objective(FlowMatching())(Prediction(output, given.target, t, given.share, mask))
    said.total.backward()
    kept = mask.expand_as(output).bool()
    assert torch.allclose(said.total, (output - given.target)[kept].square().mean())
    assert (output.grad[~kept] == 0).all()
    assert torch.allclose(output.grad[kept], 2 * (output - given.target)[kept].detach() / kept.sum())
    assert said.counted.flatten().tolist() == [0, 90, 45, 90]
    assert said.each.isfinite().all()


def test_huber_is_square_where_it_is_small_and_linear_where_it_is_large() -> None:
    objective = Objective(FlowMatching(), huber=0.5)
    small, large = torch.tensor([1e-2, -1e-2]), torch.tensor([1e3, -1e3])
    assert torch.allclose(objective.distance(small), small.square() / (2 * 0.5), rtol=1e-2)
    assert torch.allclose(objective.distance(large), large.abs() - 0.5, rtol=1e-3)


def test_what_routers_add_joins_by_name() -> None:
    given = prediction(torch.full((4, 1, 1, 1), 500.0))
    two, three = torch.tensor(2.0), torch.tensor(3.0)
    drafts = [torch.full_like(given.target, value) for value in (0.5, 1.5)]
    routings = [
        Added({"balance": Loss(two, 0.1), "z": Loss(three, 0.5)}, drafts[0], 0.2),
        Added({"balance": Loss(three, 0.1)}, drafts[1], 0.4),
    ]
    plain = Objective(FlowMatching())(given)
    said = Objective(FlowMatching())(
        Prediction(given.output, given.target, given.t, given.share, None, routings)
    )
    errors = [(draft - given.target).square().mean() for draft in drafts]
    expected = plain.total + 0.1 * 2 + 0.5 * 3 + 0.1 * 3 + 0.2 * errors[0] + 0.4 * errors[1]
    assert torch.allclose(said.total, expected)
    parts = {name: float(value) for name, value in said.parts.items()}
    assert parts == pytest.approx({
        "loss": float(plain.total), "balance": 2.5, "z": 3.0, "aux": float(sum(errors) / 2)
    })  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weighting": "snr"}, "weighting must be one of uniform, min_snr, sigmoid, got 'snr'"),
        ({"gamma": 0.0}, "gamma must be above 0, got 0.0"),
        ({"huber": -1.0}, "huber must be above 0, got -1.0"),
    ],
)
def test_wrong_options_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Objective(FlowMatching(), **options)
