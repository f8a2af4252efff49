"""What routers and experts say that they can do: true for every YAML, never inherited, and refused where not said."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from ditmoe.config import build
from ditmoe.moe import Context, Experts, MoE, Place, Router, Routing, SoftRouting, TimestepExperts
from tests.routers import GRIDS, ROUTERS, B, D, N, batch
from tests.training.test_trainer import config, options

NAMES = [name for name in options("router") if name != "dense"]
EVERY = pytest.mark.parametrize("name", NAMES)
CLASSES = sorted({type(make(hidden_size=D)) for make in ROUTERS.values()}, key=lambda kind: kind.__name__)


@pytest.fixture(scope="module")
def sections() -> dict[str, dict]:
    return {name: config(f"router={name}")["router"] for name in NAMES}


def layer(make, seed: int = 0) -> MoE:
    """A layer of such a router, with weights that are nowhere zero and its state at home."""
    torch.manual_seed(seed)
    router = make(hidden_size=D)
    router.bind(Place(layer=0, num_layers=1, out_features=6, axes=len(GRIDS[2])))
    moe = MoE(router, D, 24, 8, "swiglu")
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(std=0.3)
        x, context = batch()
        moe.router.update([moe(x, context)[1].batch_stats])
    return moe


@EVERY
@torch.no_grad()
def test_it_returns_the_kind_of_routing_that_it_names(sections: dict, name: str) -> None:
    moe, (x, context) = layer(build.make_router(sections[name])), batch()
    for training in (True, False):
        assert type(moe.train(training)(x, context)[1]) is moe.router.routing


@EVERY
@torch.no_grad()
def test_top_k_matters_in_sampling_exactly_where_it_is_claimed(sections: dict, name: str) -> None:
    section = sections[name]
    own = section.get("router") or section
    if "top_k" not in own:
        pytest.skip("it has no top_k")
    taken, start = [], layer(build.make_router(section)).state_dict()
    for top_k in (1, 3):
        chosen = own | {"top_k": top_k}
        changed = section | {"router": chosen} if "router" in section else chosen
        moe = layer(build.make_router(changed))
        moe.load_state_dict(start)
        routing = moe.eval()(*batch())[1]
        taken.append(len(routing.token) + int(routing.dropped or 0))
    if build.find_target(own)[0].top_k_in_sampling:
        assert taken == [B * N, 3 * B * N]
    else:
        assert taken[0] == taken[1]


@EVERY
@torch.no_grad()
def test_within_timestep_it_does_what_it_does_alone_or_is_refused(sections: dict, name: str) -> None:
    make, (x, context) = build.make_router(sections[name]), batch()
    moe = layer(make)
    if not moe.router.within_timestep:
        with pytest.raises(
            ValueError, match=rf"^the router within timestep .* got {type(moe.router).__name__}$"
        ):
            TimestepExperts(D, [950], make)
        return
    whole = layer(partial(TimestepExperts, boundaries=[950], router=make))  # above all times of the batch
    whole.router.routers[0].load_state_dict(moe.router.state_dict())
    whole.shared.load_state_dict(moe.shared.state_dict())
    for stacked, weight in zip(whole.experts.parameters(), moe.experts.parameters(), strict=True):
        stacked[: len(weight)] = weight
    for training in (True, False):
        expected = moe.train(training)(x, context)[0]
        assert torch.allclose(whole.train(training)(x, context)[0], expected, atol=1e-5)


@EVERY
@torch.no_grad()
def test_experts_that_may_be_spread_need_their_rows_alone(sections: dict, name: str) -> None:
    moe, (x, context) = layer(build.make_router(sections[name])), batch()
    rows = moe.router(x, context).dispatch(x, context.layout)
    alone = replace(rows, sample=None, places=None)
    if moe.experts.spreadable:
        assert torch.equal(moe.experts(alone, context.c + 1), moe.experts(rows, context.c))
    else:
        assert not torch.allclose(moe.experts(rows, context.c + 1), moe.experts(rows, context.c), atol=1e-3)


@EVERY
@torch.no_grad()
def test_weights_sum_to_one_where_that_is_claimed(sections: dict, name: str) -> None:
    section, claimed = sections[name], []
    own = section.get("router") or section
    for renormalize in (True, False) if "renormalize" in own else (None,):
        chosen = own if renormalize is None else own | {"renormalize": renormalize}
        changed = section | {"router": chosen} if "router" in section else chosen
        moe = layer(build.make_router(changed))
        claimed.append(moe.router.weights_sum_to_one)
        for training in (True, False):
            routing = moe.train(training)(*batch())[1]
            total = torch.zeros(B * N).index_add(0, routing.token, routing.weight)
            assert not claimed[-1] or torch.allclose(total, torch.ones(B * N), atol=1e-5)
    assert any(claimed) == (name in ("token_choice", "loss_free", "timestep"))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_subclass_claims_nothing_and_is_refused(kind: type[Router]) -> None:
    own = type("Own", (kind,), {})
    assert not any(getattr(own, claim) for claim in Router.CLAIMS)
    make = next(
        make for make in ROUTERS.values() if make.func is kind or getattr(make.func, "func", None) is kind
    )
    with pytest.raises(ValueError, match=r"^the router within timestep [^\n]* got Own$"):
        TimestepExperts(D, [500], partial(own, **make.keywords))
    assert not type("OwnExperts", (Experts,), {}).spreadable


class Mixing(Router):
    """A person's router, whose routing mixes tokens, and which does not say so."""

    num_experts, active = 4, 1.0

    def forward(self, x: Tensor, context: Context) -> Routing:
        one, mix = torch.ones(4), torch.ones(B * N, 4, 1)
        return SoftRouting(one.long(), one.long(), one, mix[..., 0], mix=mix, back=mix)


def test_a_routing_of_a_kind_that_is_not_named_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^Mixing.routing must name the kind of routing that it returns, SoftRouting$"
    ):
        MoE(Mixing(), D, 24, 0, "swiglu")(*batch())
