"""Every router holds every law of `tests/moe/laws.py`, also one that is given on the fly; and a broken one does not."""

import copy
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ditmoe.moe import Context, MoE, Router, Routing, SoftRouting
from ditmoe.parallel.mesh import _let_fsdp_see
from tests.moe.laws import LAWS
from tests.routers import ROUTERS, B, D, N, Subject, batch, found, layer, loop
from tests.subjects import OWN

EVERY = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)


@pytest.mark.parametrize("name", list(ROUTERS))
@EVERY
def test_every_router_holds(law: Callable[[Subject], None], name: str) -> None:
    law(ROUTERS[name])


def test_every_yaml_is_a_subject() -> None:
    files = {file.stem for file in (OWN / "router").glob("*.yaml")}
    assert files - ROUTERS.keys() == {"dense", "for_video"}  # no router, and a choice among the others


@pytest.mark.parametrize("name", ["token_choice", "expert_choice", "relu"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gradients_equal_the_loops(name: str, activation: str) -> None:
    moe, (x, context) = layer(name, activation), batch(name)
    other = copy.deepcopy(moe)
    moe(x, context)[0].square().sum().backward()
    loop(other, x, context).square().sum().backward()
    for (own, p), q in zip(moe.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-3, rtol=1e-4), own


@pytest.mark.parametrize("name", ["loss_free", "renormalized", "segments", "decoupled"])
def test_some_claim_that_weights_sum_to_one(name: str) -> None:
    assert layer(name).router.weights_sum_to_one == (name in ("loss_free", "segments"))


class Mixing(Router):
    """A person's router, whose routing mixes tokens, and which does not say so."""

    num_experts, active = 4, 1.0

    def forward(self, x: Tensor, context: Context) -> Routing:
        one, mix = torch.ones(4), torch.ones(B * N, 4, 1)
        return SoftRouting(one.long(), one.long(), one, mix[..., 0], mix=mix, back=mix)


def test_a_routing_of_a_kind_that_is_not_named_is_refused() -> None:
    line = r"^Mixing.routing must name the kind of routing that it returns, SoftRouting$"
    with pytest.raises(ValueError, match=line):
        MoE(Mixing(), D, 24, 0, "swiglu")(*batch())


class More(Routing):
    """A person's routing, whose tensors are no fields."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "more", self.weight * 2)


def test_a_routing_in_which_fsdp_finds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^More must itself be a dataclass, [^\n]*$"):
        _let_fsdp_see(More)


# --- routers that nobody here knows of

CLASS = """
from dataclasses import dataclass, field

import torch
from torch import nn

from ditmoe.moe import Experts, Router, Routing
from ditmoe.moe.router import project


@dataclass(frozen=True)
class Mine(Routing):
    sure: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


class Nearest(Router):
    '''Each token goes to the one expert whose direction is nearest.'''

    routing, {claims} = Mine, True

    def __init__(self, hidden_size, num_experts):
        super().__init__()
        self.num_experts, self.active = num_experts, 1.0
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        {state}

    def forward(self, x, context):
        scores = project({seen}.flatten(0, 1), self.weight).softmax(-1)
        weight, expert = scores.max(-1)
        {extra}
        token = torch.arange(len(scores), device=x.device)
        return {answer}(token, expert, {weight}, scores{sure})
"""
WORKS = {
    "claims": "within_timestep",
    "state": "pass",
    "seen": "x",
    "extra": "pass",
    "answer": "Mine",
    "weight": "weight",
    "sure": ", sure=weight",
}
BROKEN = {
    "samples see each other": ({"seen": "(x + x.mean(0, keepdim=True))"}, "samples_do_not_see_each_other"),
    "its weights are half precision": ({"weight": "weight.to(x.dtype)"}, "half_precision_runs_and_scores_stay_float32"),
    "another kind of routing": (
        {"answer": "Routing", "sure": ""},
        "it_returns_the_kind_of_routing_that_it_names_with_tensors_that_fsdp_finds",
    ),
    "a state that no update moves": (
        {"state": "self.register_buffer('seen', torch.zeros(()))"},
        "a_forward_pass_changes_nothing_and_state_travels",
    ),
    "a pass that changes its state": (
        {"state": "self.register_buffer('seen', torch.zeros(()))", "extra": "self.seen.add_(1)"},
        "a_forward_pass_changes_nothing_and_state_travels",
    ),
    "weights without a gradient": ({"weight": "weight.detach()"}, "gradients_reach_every_expert_and_the_router"),
    "the time of a sample for its tokens": (
        {"seen": "(x + context.layout.spread(context.time.mean(0, keepdim=True).expand_as(context.time)))"},
        "a_token_gets_what_its_own_time_says",
    ),
}  # fmt: skip


def stranger(folder: Path, name: str, **changes: str) -> Subject:
    """A class and a YAML in a folder of a person's own."""
    (folder / "configs/router").mkdir(parents=True)
    (folder / f"{name}.py").write_text(textwrap.dedent(CLASS.format(**(WORKS | changes))))
    text = f"_target_: {name}.Nearest\n_partial_: true\nnum_experts: 8\n"
    (folder / "configs/router" / f"{name}.yaml").write_text(text)
    return found(folder / "configs")[name]


def test_a_router_that_is_given_on_the_fly_holds_all_laws(tmp_path: Path) -> None:
    mine = stranger(tmp_path, "mine")
    assert mine.make(hidden_size=8).num_experts == 4
    for law in LAWS:
        law(mine)


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_router_breaks_its_law(what: str, tmp_path: Path) -> None:
    changes, name = BROKEN[what]
    broken = stranger(tmp_path, f"broken_{list(BROKEN).index(what)}", **changes)
    law = next(law for law in LAWS if law.__name__ == name)
    with pytest.raises((AssertionError, ValueError)):
        law(broken)
