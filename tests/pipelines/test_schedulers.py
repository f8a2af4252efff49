"""`X.from_config(pipe.scheduler.config)`: each scheduler that can follow a process does, by the numbers."""

import diffusers
import pytest
import torch
from diffusers.utils import logging

from benchmarks.quality.samplers import MEAN, STD, Gaussian, rms, scheduler_named, solution
from ditmoe.conditioning import Condition
from ditmoe.diffusion import DDPM, FlowMatching, Process, check_scheduler, denoise, make_scheduler
from ditmoe.diffusion.timesteps import set_timesteps
from ditmoe.pipelines.interface import process_options

BOTH = ("DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "SASolver")
FLOWS = (*BOTH, "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")
DIFFUSIONS = (
    *BOTH, "DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete", "LMSDiscrete", "PNDM",
)  # fmt: skip
NOISY = {"DDPM", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete", "SASolver"}
STARTS = [(FlowMatching("residual"), "flow_ancestral"), (FlowMatching(), "flow_euler"), (FlowMatching(), "unipc"),
          (DDPM(), "ddim"), (DDPM(), "dpmpp"), (DDPM(), "euler")]  # fmt: skip


def told(process: Process, name: str):
    """A scheduler as a pipeline has it."""
    scheduler = make_scheduler(scheduler_named(name), process)
    options = process_options(scheduler, process)
    scheduler.register_to_config(**{k: v for k, v in options.items() if k not in scheduler.config})
    return scheduler


@pytest.fixture(autouse=True)
def quiet():
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # each class says which of the other's options it lacks
    yield
    logging.set_verbosity(level)


@pytest.mark.parametrize(("process", "name"), STARTS, ids=lambda value: getattr(value, "prediction", value))
def test_each_that_can_follow_the_process_does(process: Process, name: str) -> None:
    config, torch_noise = told(process, name).config, torch.Generator().manual_seed(0)
    noise = torch.randn(2000, len(MEAN), generator=torch_noise)
    exact = solution(process, noise)
    nothing = Condition({}, torch.ones(len(noise), dtype=torch.bool))
    for kind in FLOWS if isinstance(process, FlowMatching) else DIFFUSIONS:
        scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(config)
        check_scheduler(scheduler, process)
        own = [torch.Generator().manual_seed(1)]
        x = denoise(Gaussian(process), process, scheduler, noise, nothing, steps=50, generators=own)
        moments = rms(torch.stack([x.mean(0) - MEAN, x.std(0) - STD]) / STD)
        assert moments < 0.1, kind
        assert kind in NOISY or rms((x - exact) / STD) < 0.08, kind


@pytest.mark.parametrize(
    ("process", "kind", "line"),
    [
        (
            FlowMatching(),
            "EulerDiscrete",
            r"cannot follow process flow_matching; .*FlowMatchEulerDiscreteScheduler",
        ),
        (
            DDPM(),
            "FlowMatchHeunDiscrete",
            r"needs process flow_matching; .*DPMSolverMultistepScheduler.from_config",
        ),
        (
            DDPM(),
            "LTXEulerAncestralRF",
            r"cannot follow process ddpm; .*DPMSolverMultistepScheduler.from_config",
        ),
        (DDPM(), "RePaint", r"needs original_image and mask"),
    ],
)
def test_others_are_refused_by_a_line_that_names_the_call(process: Process, kind: str, line: str) -> None:
    scheduler = getattr(diffusers.schedulers, f"{kind}Scheduler")()
    with pytest.raises(ValueError, match=rf"^scheduler {kind}Scheduler [^\n]*{line}[^\n]*$"):
        check_scheduler(scheduler, process)


def test_times_of_ones_own_are_taken_as_they_are() -> None:
    times, flow = [990.0, 800.0, 500.0, 80.0], FlowMatching()
    for kind, word in (("FlowMatchEulerDiscrete", "sigmas"), ("FlowMatchEulerDiscrete", "timesteps"),
                       ("UniPCMultistep", "sigmas"), ("DPMSolverMultistep", "timesteps")):  # fmt: skip
        scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(told(flow, "flow_ancestral").config)
        own = times if word == "timesteps" else [time / 1000 for time in times]
        set_timesteps(scheduler, 4, torch.device("cpu"), **{word: own})
        # Though flow_ancestral shifts its own.
        assert torch.allclose(scheduler.timesteps, torch.tensor(times)), kind
        assert torch.allclose(scheduler.sigmas * 1000, torch.tensor([*times, 0.0]), atol=1e-3)
    scheduler = diffusers.DDPMScheduler.from_config(told(DDPM(), "ddim").config)
    set_timesteps(scheduler, 4, torch.device("cpu"), timesteps=times)
    assert scheduler.timesteps.tolist() == times
    for own, line in (
        ({"sigmas": [0.5]}, "DDPMScheduler does not support custom sigmas"),
        ({"timesteps": [1, 2]}, "timesteps must fall from noise to data"),
        ({"timesteps": [2000]}, "each of timesteps must"),
        ({"timesteps": []}, "must be a list of 1 to"),
        ({"timesteps": [1], "sigmas": [1]}, "only one of timesteps and sigmas"),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{line}[^\n]*$"):
            set_timesteps(scheduler, 4, torch.device("cpu"), **own)


def test_one_that_needs_more_than_a_number_of_steps_is_refused_in_one_line() -> None:
    scheduler = diffusers.HeliosScheduler.from_config(told(FlowMatching(), "flow_euler").config)
    line = r"^scheduler HeliosScheduler needs more than a number of steps to set its times$"
    with pytest.raises(ValueError, match=line):
        set_timesteps(scheduler, 4, torch.device("cpu"))
