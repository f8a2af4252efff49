"""Every scheduler that is offered, on every process, with the best possible network of a Gaussian: the laws behind
the table of benchmarks/quality/samplers.py, which has the formulas."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from benchmarks.quality.samplers import (
    MEAN,
    STD,
    adds_noise,
    draw,
    mix,
    moment_error,
    names,
    sample_error,
    scheduler_named,
    solution,
)
from ditmoe.diffusion import DDPM, EvenDDIMScheduler, FlowMatching, make_scheduler
from ditmoe.diffusion.timesteps import set_timesteps

PROCESSES = {
    "flow, velocity": FlowMatching("velocity"),
    "flow, residual": FlowMatching("residual"),
    "epsilon, linear": DDPM("epsilon"),
    "epsilon, cosine": DDPM("epsilon", "cosine"),
    "v, linear": DDPM("v"),
    "v, cosine": DDPM("v", "cosine"),
}
FOLLOW_FLOWS = {"flow_euler", "flow_map", "flow_heun", "flow_ancestral", "dpmpp", "dpmpp_sde", "unipc"}
FOLLOW_DDPM = {"ddim", "ddpm", "euler", "dpmpp", "dpmpp_sde", "unipc"}
ADD_NOISE = {"ddpm", "dpmpp_sde", "flow_ancestral"}
FIRST_ORDER = {"ddim", "euler", "flow_euler", "flow_map"}


def is_flow(process: str) -> bool:
    return isinstance(PROCESSES[process], FlowMatching)


def meet(process: str, name: str) -> bool:
    return name in (FOLLOW_FLOWS if is_flow(process) else FOLLOW_DDPM)


ALL = [(p, n) for p in PROCESSES for n in names()]
PAIRS = [pair for pair in ALL if meet(*pair)]
NOISY = [(p, n) for p, n in PAIRS if n in ADD_NOISE]
SMOOTH = [(p, n) for p, n in PAIRS if n not in ADD_NOISE]
ONE_OF_EACH = [(p, n) for p, n in PAIRS if p in ("flow, residual", "v, linear")]


def timed(process: str, name: str, steps: int):
    scheduler = make_scheduler(scheduler_named(name), PROCESSES[process])
    set_timesteps(scheduler, steps, torch.device("cpu"))
    return scheduler


@pytest.mark.parametrize(("process", "name"), [pair for pair in ALL if not meet(*pair)])
def test_those_that_cannot_meet_say_so_in_one_line(process: str, name: str) -> None:
    with pytest.raises(ValueError, match=r"^scheduler \w+ (cannot follow|needs) process flow_matching; .*\Z"):
        make_scheduler(scheduler_named(name), PROCESSES[process])


class Euler(FlowMatchEulerDiscreteScheduler):
    """Of a name that says nothing."""


def test_what_a_scheduler_is_does_not_hang_on_its_name() -> None:
    with pytest.raises(ValueError, match="needs process flow_matching"):
        make_scheduler(Euler, PROCESSES["v, linear"])
    scheduler = make_scheduler(Euler, PROCESSES["flow, velocity"])
    set_timesteps(scheduler, 4, torch.device("cpu"))
    assert scheduler.timesteps.tolist() == timed("flow, velocity", "flow_euler", 4).timesteps.tolist()


def test_every_scheduler_follows_some_process() -> None:
    assert set(names()) == FOLLOW_FLOWS | FOLLOW_DDPM


@pytest.mark.parametrize("process", PROCESSES)
def test_the_solution_turns_the_starting_noise_into_the_data(process: str) -> None:
    """The reference itself: affine, increasing, and of the data's moments where the noise has those of time T."""
    a, b = mix(PROCESSES[process], torch.tensor([1000.0 if is_flow(process) else 999.0]))
    deviations = torch.linspace(-3, 3, 7)[:, None]
    noise = a * MEAN + (a**2 * STD**2 + b**2).sqrt() * deviations
    assert torch.allclose(solution(PROCESSES[process], noise), MEAN + STD * deviations, atol=1e-5)


@pytest.mark.parametrize(("process", "name"), PAIRS)
def test_fresh_noise_is_added_where_it_should(process: str, name: str) -> None:
    assert adds_noise(PROCESSES[process], name) == (name in ADD_NOISE)


@pytest.mark.parametrize(("process", "name"), NOISY)
def test_samples_have_the_moments_of_the_data(process: str, name: str) -> None:
    samples = 4000
    _, x = draw(PROCESSES[process], name, 250, samples)
    chance = 4 / samples**0.5
    assert ((x.mean(0) - MEAN) / STD).abs().max() < chance + 0.02
    # DDPM's variance and ancestral noise are exact only in the limit of many steps, here off for the narrowest
    assert (x.std(0) / STD - 1).abs().max() < chance / 2**0.5 + (0.02 if name == "dpmpp_sde" else 0.08)


@pytest.mark.parametrize(("process", "name"), NOISY)
def test_moments_come_nearer_with_the_steps(process: str, name: str) -> None:
    errors = [moment_error(PROCESSES[process], name, steps, 4000) for steps in (5, 10, 20)]
    assert all(later < 0.8 * earlier for earlier, later in pairwise(errors))


@pytest.mark.parametrize(("process", "name"), SMOOTH)
def test_order_of_convergence(process: str, name: str) -> None:
    """Twice the steps: half the error, or a quarter of it for solvers of second order.

    What keeps those below 2: on a flow the first steps, of a fixed ratio of a / b however many there are; on DDPM the
    last, of first order and from b^2 ~ 1 / steps, which is all that remains beyond about 100 steps.
    """
    steps = (5, 10, 20, 50, 100, 200) if is_flow(process) else (5, 10, 20, 50, 100)
    errors = [sample_error(PROCESSES[process], name, n, 200) for n in steps]
    assert all(later < earlier for earlier, later in pairwise(errors))
    order = math.log2(errors[-2] / errors[-1])
    if name in FIRST_ORDER:
        assert order == pytest.approx(1, abs=0.1)
        assert errors[4] < 0.04
    else:
        assert order > 1.4
        assert errors[4] < 0.007


@pytest.mark.parametrize(("process", "name"), [(p, n) for p, n in SMOOTH if p == "v, linear"])
def test_numbers_of_steps_that_do_not_divide_1000_are_as_good(process: str, name: str) -> None:
    """More steps than the round number below them, so no larger error; diffusers' times go wrong here."""
    for steps, fewer in ((61, 50), (150, 125)):
        errors = [sample_error(PROCESSES[process], name, n, 50) for n in (steps, fewer)]
        assert errors[0] < errors[1]


@pytest.mark.parametrize(("process", "name"), [pair for pair in NOISY if pair in ONE_OF_EACH])
def test_moments_are_right_where_a_step_would_be_one_too_many(process: str, name: str) -> None:
    errors = [moment_error(PROCESSES[process], name, n, 4000) for n in (61, 20)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(("process", "name"), ONE_OF_EACH)
def test_times_fall_from_noise_to_data(process: str, name: str) -> None:
    """They are told to the network, so each must be where the sample is: s = t / 1000 on a flow."""
    for steps in (1, 2, 7, 61, 103, 487, 999, 1000):
        scheduler = timed(process, name, steps)
        times = scheduler.timesteps.unique_consecutive()  # Heun's asks twice at a time
        assert len(times) == steps
        assert (times.diff() < 0).all()
        assert 0 <= times[-1] <= times[0] <= 1000
        assert times[0] >= 999
        if is_flow(process):
            sigmas = scheduler.sigmas.unique_consecutive()[:-1]
            assert torch.allclose(times, 1000 * sigmas)


@pytest.mark.parametrize(("process", "name"), SMOOTH)
def test_one_step_goes_to_the_mean(process: str, name: str) -> None:
    """What the best network says of pure noise."""
    _, x = draw(PROCESSES[process], name, 1, 100)
    assert ((x - MEAN).abs() < 0.05 * STD).all()


@pytest.mark.parametrize("name", sorted(FOLLOW_DDPM))
def test_a_discrete_process_has_no_more_steps_than_times(name: str) -> None:
    with pytest.raises(ValueError, match=r"^steps must be at most 1000 for process ddpm, got 1001\Z"):
        timed("epsilon, linear", name, 1001)


@pytest.mark.parametrize("process", [p for p in PROCESSES if not is_flow(p)])
def test_even_ddim_is_ddim(process: str) -> None:
    """Where the steps divide 1000 it is diffusers' own, step by step."""
    schedulers = [make_scheduler(cls, PROCESSES[process]) for cls in (EvenDDIMScheduler, DDIMScheduler)]
    x, output = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    for scheduler in schedulers:
        set_timesteps(scheduler, 20, torch.device("cpu"))
    for t in schedulers[0].timesteps:
        ours, theirs = (s.step(output, t, x, return_dict=False)[0] for s in schedulers)
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
        x = x / 2 + output
