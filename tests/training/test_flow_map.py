"""What is learnt of a step of any length, against a flow that is known exactly."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.quality.samplers import MEAN, STD, mix, solution
from ditmoe.conditioning import Condition
from ditmoe.diffusion import HORIZON, FlowMapScheduler, FlowMatching, denoise, make_scheduler
from ditmoe.modality import Tokens
from ditmoe.model import StepEmbedding
from ditmoe.training import Distillation, Teaching
from ditmoe.training.batch import Batch
from ditmoe.training.distillation import FURTHER


class Whole(Tokens):
    """A sample is one token."""

    patchify = positions = unpatchify = None

    def grid(self, x: Tensor) -> tuple[int, ...]:
        return (1,)


class ExactMap(nn.Module):
    """The flow of N(MEAN, STD^2), along which the number of deviations from the mean stays the same, and its means."""

    def __init__(self, process: FlowMatching) -> None:
        super().__init__()
        self.tokens, self.step_embedding = Whole(), StepEmbedding(8, 32, None)
        self.process = process

    def forward(self, x: Tensor, t: Tensor, asked: Condition) -> tuple[Tensor]:
        span = asked.step["span"]
        a, b = mix(self.process, t)
        deviation = (a.square() * STD.square() + b.square()).sqrt()
        away = (x - a * MEAN) / deviation
        velocity = -MEAN + (b - a * STD.square()) / deviation * away
        c, d = mix(self.process, t - span)
        later = c * MEAN + (c.square() * STD.square() + d.square()).sqrt() * away
        mean = (x - later) / (span[:, None] / HORIZON).clamp_min(1e-3)
        return (self.process.from_velocity(torch.where(span[:, None] > 0, mean, velocity), x, t),)


def taught(process: FlowMatching, share: float, num: int = 64) -> tuple[Teaching, Batch]:
    exact = ExactMap(process)
    options = Distillation(step=1, fingerprint="", share=share)
    generator = torch.Generator().manual_seed(0)
    x0 = MEAN + STD * torch.randn(num, len(MEAN), generator=generator)
    t = process.draw_times(num, generator)
    noise, further = torch.randn(x0.shape, generator=generator), torch.rand(num, FURTHER, generator=generator)
    asked = Condition({}, torch.zeros(num, dtype=torch.bool))
    batch = Batch(0, x0, noise, t, t[:, None], asked, None, num, x0.numel(), further=further)
    return Teaching(options, None, exact.step_embedding, process, exact.tokens), batch


def called(model: nn.Module, x: Tensor, t: Tensor, asked: Condition) -> Tensor:
    return model(x, t, asked)[0]


@pytest.mark.parametrize("prediction", ["velocity", "residual"])
def test_the_true_mean_velocity_is_what_is_learnt_of_itself(prediction: str) -> None:
    """But of the shortest steps, whose halves are Euler's."""
    process = FlowMatching(prediction)
    teaching, batch = taught(process, share=1.0)
    exact = ExactMap(process)
    told, x, target = teaching(batch, exact, called)
    span = told.asked.step["span"]
    assert set((HORIZON / span).round().int().tolist()) == {1, 2, 4, 8, 16, 32}
    assert ((told.t / span) % 1 < 1e-4).all()  # steps of even drawings
    off = (exact(x, told.t, told.asked)[0] - target).abs().amax(1)
    assert off[span > 40].max() < 1e-4
    assert off.max() < 0.05


@pytest.mark.parametrize("steps", [1, 2, 4, 32])
@pytest.mark.parametrize("prediction", ["velocity", "residual"])
def test_a_step_of_the_true_map_lands_where_the_flow_leads(prediction: str, steps: int) -> None:
    process = FlowMatching(prediction)
    noise = torch.randn(16, len(MEAN), generator=torch.Generator().manual_seed(0))
    asked = Condition({}, torch.zeros(16, dtype=torch.bool))
    scheduler = make_scheduler(FlowMapScheduler, process)
    x = denoise(ExactMap(process), process, scheduler, noise, asked, steps=steps)
    assert torch.allclose(x, solution(process, noise), atol=2e-5)


def test_the_scheduler_is_that_of_diffusers_without_shift() -> None:
    diffusers = pytest.importorskip("diffusers", minversion="0.42")
    process, noise = FlowMatching("velocity"), torch.randn(4, len(MEAN))
    asked = Condition({}, torch.zeros(4, dtype=torch.bool))
    both = [make_scheduler(FlowMapScheduler, process), diffusers.FlowMapEulerDiscreteScheduler()]
    own, theirs = (denoise(ExactMap(process), process, s, noise, asked, steps=8) for s in both)
    assert torch.allclose(own, theirs, atol=1e-5)
    with pytest.raises(ValueError, match="shift must be 1"):
        FlowMapScheduler(shift=0.7)


def test_steps_of_no_length_are_the_plain_training() -> None:
    process = FlowMatching()
    teaching, batch = taught(process, share=0.0)
    told, x, target = teaching(batch, ExactMap(process), called)
    assert not told.asked.step["span"].any()
    assert torch.equal(told.t, batch.t)
    assert torch.equal(x, process.corrupt(batch.x0, batch.noise, batch.each))
    assert torch.equal(target, process.target(batch.x0, batch.noise, batch.each))
