"""What is given comes out as it was and steers what is not, with every scheduler and process."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ditmoe.conditioning import Condition
from ditmoe.config import build
from ditmoe.diffusion import DDPM, FlowMatching, denoise, draw_noise, make_scheduler, torch_generator
from ditmoe.given import Given
from tests.subjects import section

RHO = 0.8
FLOW = ("flow_euler", "flow_map", "flow_ancestral", "flow_heun", "dpmpp", "unipc")
DISCRETE = ("ddim", "ddpm", "dpmpp", "dpmpp_sde", "unipc", "euler")


class Exact(nn.Module):
    """The exact velocity of pairs (u, v) of unit variance and correlation RHO, at a time for each of the two."""

    tokens = SimpleNamespace(
        grid=lambda x: (2,), sample_times=lambda t, x: t[:, None] if t.ndim > 1 else t[:, None, None]
    )

    def __init__(self, process) -> None:
        super().__init__()
        self.process, self.told = process, []

    def forward(self, x: Tensor, t: Tensor, asked: Condition) -> tuple[Tensor]:
        self.told.append(t)
        x_t = x[:, 0].double()  # (B, 2)
        times = (t if t.ndim > 1 else t[:, None].expand(-1, 2)).float()
        one, zero = torch.ones_like(times), torch.zeros_like(times)
        a, b = (self.process.corrupt(*pair, times).double() for pair in ((one, zero), (zero, one)))
        cov = torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)
        of_data = a[:, :, None] * cov * a[:, None]
        noisy = of_data + torch.diag_embed(b.square() + 1e-9)
        weights = torch.linalg.solve(noisy, x_t[..., None])[..., 0]
        x0 = ((a[:, :, None] * cov).mT @ weights[..., None])[..., 0]
        noise = b * weights
        target = self.process.target(x0.float(), noise.float(), times)
        return (target[:, None],)


def scheduler_of(name: str, process):
    return make_scheduler(build.make(section("scheduler", name)), process)


CASES = [(n, partial(FlowMatching)) for n in FLOW] + [(n, partial(DDPM)) for n in DISCRETE]


def drawn(
    name, process, given: Given | None, num: int = 8, steps: int = 12, **options
) -> tuple[Tensor, Exact]:
    model = Exact(process)
    asked = Condition({}, torch.zeros(num, dtype=torch.bool))
    generators = [torch_generator("scheduler", 0, i) for i in range(num)]
    x = denoise(
        model, process, scheduler_of(name, process), draw_noise(range(num), (1, 2), 0), asked,
        steps=steps, generators=generators, given=given, **options,
    )  # fmt: skip
    return x, model


def first_of(x: Tensor, told: bool = True) -> Given:
    """The first of the two numbers is given."""
    known = torch.tensor([True, False])
    return Given(x, known[None, None], known[None] if told else None)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(("name", "make"), CASES)
def test_what_is_known_comes_out_bit_for_bit(name, make, told: bool) -> None:
    x0 = torch.randn(8, 1, 2)
    x, model = drawn(name, make(), first_of(x0, told))
    assert torch.equal(x[..., 0], x0[..., 0])
    assert not torch.equal(x[..., 1], x0[..., 1])
    assert all((t.ndim == 2 and not t[:, 0].any()) if told else t.ndim == 1 for t in model.told)


@pytest.mark.parametrize(("name", "make"), CASES)
def test_pieces_of_places_are_as_what_a_model_is_not_told(name, make) -> None:
    x0, none = torch.randn(8, 1, 2), torch.tensor([[False, False]])
    untold, _ = drawn(name, make(), first_of(x0, told=False))
    known = torch.tensor([[[True, False]]])
    pieces, model = drawn(name, make(), Given(x0, none[None], none, pieces=known))
    assert torch.equal(pieces, untold)
    assert all((t[:, 0] == t[:, 1]).all() for t in model.told)
    second, first = torch.tensor([[[False, True]]]), torch.tensor([[True, False]])
    both, model = drawn(name, make(), Given(x0, known, first, pieces=second))
    assert torch.equal(both, x0)
    assert not any(t[:, 0].any() for t in model.told)


@pytest.mark.parametrize(("name", "make"), CASES)
def test_what_is_told_steers_the_rest_as_the_data_have_it(name, make) -> None:
    """Given u, v has mean RHO u and variance 1 - RHO^2."""
    num = 512
    x0 = torch.linspace(-2, 2, num).view(-1, 1, 1).expand(-1, 1, 2).clone()
    x, _ = drawn(name, make(), first_of(x0), num, steps=30)
    u, v = x[:, 0, 0], x[:, 0, 1]
    slope = (u * v).mean() / u.square().mean()
    assert slope == pytest.approx(RHO, abs=0.09)
    assert (v - RHO * u).std() == pytest.approx((1 - RHO**2) ** 0.5, abs=0.12)


@pytest.mark.parametrize(("name", "make"), CASES)
def test_a_sample_does_not_depend_on_its_batch(name, make) -> None:
    x0 = torch.randn(6, 1, 2)
    whole, _ = drawn(name, make(), first_of(x0), 6)
    some, _ = drawn(name, make(), first_of(x0[:2]), 2)
    assert torch.equal(whole[:2], some)


@pytest.mark.parametrize(("name", "make"), CASES)
def test_a_strength_says_how_much_is_left(name, make) -> None:
    x0 = torch.randn(256, 1, 2, generator=torch.Generator().manual_seed(0))

    def left(strength: float) -> float:
        x, _ = drawn(name, make(), Given(x0, strength=strength), 256, steps=20)
        return torch.corrcoef(torch.stack([x[:, 0, 0], x0[:, 0, 0]]))[0, 1].item()

    weak, half, strong = left(0.1), left(0.6), left(0.95)
    assert weak > 0.85
    assert weak > half + 0.1
    assert strong < 0.6


def test_guidance_by_what_is_given_leads_away_from_what_is_drawn_without() -> None:
    """With u given, hidden v has mean 0: twice the guidance doubles the slope."""
    process, num = FlowMatching(), 512
    x0 = torch.linspace(-2, 2, num).view(-1, 1, 1).expand(-1, 1, 2).clone()
    x, model = drawn("flow_euler", process, first_of(x0), num, steps=30, given_guidance=2.0)
    slope = (x[:, 0, 0] * x[:, 0, 1]).mean() / x[:, 0, 0].square().mean()
    assert slope > 1.4 * RHO
    shown, hidden = model.told[3].chunk(2)
    assert not shown[:, 0].any()
    assert (hidden[:, 0] == process.last).all()
