"""Initial values: all weights get theirs in one place, and a seed gives the model that it always gave."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ditmoe.config import build
from ditmoe.model import DiTMoE, initialize_layers
from ditmoe.model.initialization import initialize
from ditmoe.moe import Experts, TokenChoice
from tests.training.test_trainer import config, options

MASKED = ["model=masked", "model.hidden_size=48", "model.depth=2", "model.moe_layers=[1]"]
BORN = {  # a sum over all values of a model of seed 0, each with a weight of its own
    "router=token_choice": 9.848984,
    "router=expert_choice router.decoupled=true": 4.941551,
    "router=batch_pool": -8.125699,
    "router=race": -35.451093,
    "router=soft": -4.553745,
    "router=relu": 9.850237,
    "router=timestep": -16.092533,
    "router=timestep router@router.router=race": -90.494237,
    "router=time_aware": -13.959187,
    "router=dense": 31.392669,
    "model.activation=gelu model.qk_norm=true": 23.165840,
    " ".join(MASKED): -8.640812,
    "tokens@modality.tokens=voxels modality.tokens.patch=2": 19.962998,
}


def model(*overrides: str) -> DiTMoE:
    settings = config(*overrides)
    data_facts = {"classes": ["a", "b"], "mean": [0.0] * 3, "scale": 1.0}
    modality = build.make_modality(settings, data_facts)
    torch.manual_seed(0)
    return build.make_model(settings, modality)


@pytest.mark.parametrize("words", BORN)
def test_a_seed_gives_the_model_that_it_gave(words: str) -> None:
    state = model(*words.split()).state_dict()
    values = torch.cat([value.flatten().double() for value in state.values()])
    weights = torch.linspace(-1, 1, len(values), dtype=torch.float64)
    assert (values @ weights).item() == pytest.approx(BORN[words], abs=1e-3)


@pytest.mark.parametrize("words", [*(f"router={name}" for name in options("router")), " ".join(MASKED)])
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@torch.no_grad()
def test_no_weight_is_left_out_and_blocks_are_the_identity(words: str, activation: str) -> None:
    made = model(*words.split(), f"model.activation={activation}", "model.qk_norm=true")
    for parameter in made.parameters():
        parameter.fill_(torch.nan)
    torch.manual_seed(0)
    initialize(made)
    x, t, y = torch.randn(2, 64, 3), torch.tensor([100.0, 900.0]), torch.tensor([0, 1])
    assert all(parameter.isfinite().all() for parameter in made.parameters())
    assert not made.eval()(x, t, y)[0].any()  # nothing is predicted at birth


class Shifted(nn.Module):
    """A layer around another one that starts otherwise than its kind."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.told = nn.Linear(4, 4), 0

    def initialize(self) -> None:
        assert not self.inner.bias.any(), "what is within comes first"
        nn.init.ones_(self.inner.bias)
        self.told += 1


class Halved(Experts):
    def initialize(self) -> None:
        self.up.mul_(0.5)


class Marked(TokenChoice):
    def initialize(self) -> None:
        self.weight[0] = 7


def test_a_class_may_say_how_its_own_layers_start() -> None:
    made = SimpleNamespace(
        layer=nn.Sequential(Shifted(), nn.Embedding(3, 4)),
        experts=(Experts(2, 8, 8, "swiglu"), Halved(2, 8, 8, "swiglu")),
        router=Marked(8, 4, 1),
    )
    initialize_layers(made.layer, made.router)
    assert made.layer[0].told == 1
    assert (made.layer[0].inner.bias == 1).all()
    for experts in made.experts:
        torch.manual_seed(3)
        initialize_layers(experts)
    assert torch.equal(made.experts[1].up, made.experts[0].up / 2)
    assert torch.equal(made.experts[1].down, made.experts[0].down)
    assert (made.router.weight[0] == 7).all()
    assert made.router.weight[1:].abs().max() <= 8**-0.5
