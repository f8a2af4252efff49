"""Flow matching and DDPM: the equations, the published tables, and samplers with an exact predictor."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from ditmoe.conditioning import Condition
from ditmoe.diffusion import DDPM, FlowMatching, Process, denoise, draw_noise, make_scheduler
from ditmoe.diffusion.process import make_betas

PROCESSES = [
    FlowMatching("velocity"),
    FlowMatching("residual"),
    DDPM("epsilon"),
    DDPM("v"),
    DDPM("v", "cosine"),
    DDPM("epsilon", "warm0.1"),
]


def mixed(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 4, 5, 3, generator=generator)
    return x0, noise, torch.tensor([1.0, 200.0, 600.0, 998.0])


@pytest.mark.parametrize("process", PROCESSES)
def test_the_true_target_leads_back_to_the_data(process: Process) -> None:
    """With a perfect answer one can solve for x0: v = e - x0 on the straight path, the DDPM algebra else."""
    x0, noise, t = mixed()
    x_t = process.corrupt(x0, noise, t)
    out = process.to_scheduler_output(process.target(x0, noise, t), x_t, t)
    if isinstance(process, FlowMatching):
        back = x_t - t.view(-1, 1, 1) / 1000 * out
    else:
        a = process.alphas_cumprod[t.long()].float().sqrt().view(-1, 1, 1)
        b = (1 - a**2).sqrt()
        back = (x_t - b * out) / a if process.prediction == "epsilon" else a * x_t - b * out
        back, x0 = back[:3], x0[:3]  # at the last time a is so small that float32 cannot divide by it
    assert torch.allclose(back, x0, atol=2e-3)


def test_the_residual_has_unit_variance_at_every_time() -> None:
    x0, noise = torch.randn(2, 200_000, 1)
    process = FlowMatching("residual")
    for t in (1.0, 100.0, 500.0, 900.0, 999.0):
        target = process.target(x0, noise, torch.full((200_000,), t))
        x_t = process.corrupt(x0, noise, torch.full((200_000,), t))
        assert target.var().item() == pytest.approx(1, abs=0.02)
        assert (target * x_t).mean().abs() < 0.01  # and nothing linear is left in it


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear_default", {}),
        ("warm01_airplane", {"schedule": "warm0.1", "beta_start": 1e-5, "beta_end": 0.008}),
    ],
)
def test_ddpm_equals_dit3d(golden, name: str, options: dict) -> None:
    z = golden("golden_diffusion.npz")
    process = DDPM("epsilon", **options)
    assert np.allclose(process.betas.numpy(), z[f"{name}_betas"], rtol=1e-9)
    assert np.allclose(process.alphas_cumprod.numpy(), z[f"{name}_acp"], rtol=1e-5)
    x0, noise, t = (torch.tensor(z[f"{name}_{k}"]) for k in ("x0", "eps", "t"))
    x_t = process.corrupt(x0, noise, t.float())
    assert torch.allclose(x_t, torch.tensor(z[f"{name}_xt"]), atol=1e-5)
    scheduler = make_scheduler(DDPMScheduler, process)
    scheduler.set_timesteps(1000)
    for i in range(2):
        step = scheduler.step(
            0.9 * noise[i],  # the prediction that the golden was made with
            int(t[i]),
            x_t[i],
            generator=torch.Generator().manual_seed(0),
        )
        draw = torch.randn(x_t[i].shape, generator=torch.Generator().manual_seed(0))
        std = math.exp(0.5 * z[f"{name}_logvar"].reshape(2, -1)[i, 0])
        assert torch.allclose(step.prev_sample - std * draw, torch.tensor(z[f"{name}_mean"][i]), atol=1e-4)


def test_schedules_end_in_noise() -> None:
    for schedule in ("linear", "cosine"):
        betas = make_betas(schedule, 1e-4, 0.02)
        assert betas.min() > 0
        assert betas.max() < 1
        assert (1 - betas).prod() < 1e-4


class Labelled(torch.nn.Module):
    """Predicts its label, so that guidance can be read off."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, asked: Condition) -> tuple[torch.Tensor, list]:
        y = asked.labels(3)
        self.seen = y.tolist()
        return y.float()[:, None].expand_as(x), []


def test_guidance_extrapolates_from_the_null_class_within_its_interval() -> None:
    model, process = Labelled(), FlowMatching("velocity")
    noise, asked = torch.zeros(2, 1), Condition.of_labels(torch.tensor([0, 1]), 3)

    def drift(**options) -> list[float]:
        scheduler = make_scheduler(FlowMatchEulerDiscreteScheduler, process)
        return (-denoise(model, process, scheduler, noise, asked, steps=10, **options)[:, 0]).tolist()

    assert drift() == pytest.approx([0, 1])
    assert model.seen == [0, 1]
    assert drift(guidance=2.0) == pytest.approx([-3, -1])  # 3 + 2 (y - 3)
    half = drift(guidance=2.0, interval=(0.0, 450.0))
    assert half == pytest.approx([-3 * 0.4, 0.6 - 0.4], abs=0.11)


def test_noise_depends_on_seed_and_index_alone() -> None:
    whole, part = draw_noise(range(5), (3, 2), seed=7), draw_noise([3], (3, 2), seed=7)
    assert torch.equal(whole[3:4], part)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(draw_noise([0], (3, 2), seed=8), draw_noise([0], (3, 2), seed=7))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FlowMatching("epsilon"), "epsilon"),
        (lambda: FlowMatching(std=0), "std"),
        (lambda: DDPM("velocity"), "velocity"),
        (lambda: DDPM(schedule="quadratic"), "quadratic"),
        (lambda: DDPM(beta_start=0.5, beta_end=0.1), "0.5 and 0.1"),
    ],
)
def test_wrong_options_are_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
