"""Lists of assignments that keep their length, as on a GPU, which would be waited for: the same numbers."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ditmoe.moe import MoE, experts
from ditmoe.nn import Layout
from tests.routers import GRIDS, ROUTERS, Subject, batch, layer

WAITS = {
    "base": "SciPy solves the assignment on the host",
    "capacity of time and step": "the step, which is a buffer, decides how many tokens an expert takes",
}
"""Routers that read values of the device, whatever is done."""


@contextmanager
def fixed_length() -> Iterator[None]:
    """Within it lists are as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        for place in ("routing", "expert_choice"):
            patch.setattr(f"ditmoe.moe.{place}.fixed_length", lambda x: True)
        yield


def values(moe: MoE, name: str | Subject, training: bool) -> dict[str, torch.Tensor]:
    """All that a layer gives, and the gradients."""
    x, context = batch(name)
    x.requires_grad_()
    out, routing = moe.train(training)(x, context)
    losses = sum(loss.value * loss.coefficient for loss in routing.losses.values())
    (out.square().mean() + losses).backward()
    found = {own: p.grad for own, p in moe.named_parameters() if p.grad is not None}
    told = {name: getattr(routing, name) for name in ("counts", "load", "unrouted", "chosen", "dropped")}
    told |= dict(routing.batch_stats) | {name: loss.value for name, loss in routing.losses.items()}
    return {"out": out, "x": x.grad, **found, **{k: v for k, v in told.items() if v is not None}}


@pytest.mark.parametrize("name", ROUTERS)
def test_a_list_of_fixed_length_gives_the_same_to_the_bit(name: str) -> None:
    moe = layer(name)
    with torch.no_grad():
        moe.router.update([moe(*batch(name))[1].batch_stats])
    for training in (True, False):
        expected = values(copy.deepcopy(moe), name, training)
        with fixed_length():
            found = values(copy.deepcopy(moe), name, training)
        assert found.keys() == expected.keys()
        for own, value in expected.items():
            assert torch.equal(found[own], value), own


def test_one_that_is_none_is_left_out_when_an_expert_is() -> None:
    moe = layer("relu")
    x, context = batch("relu")
    with fixed_length():
        routing = moe.router(x, context)
    assert routing.padded
    assert len(routing.expert) > routing.counts.sum()
    left = routing.without(1)
    assert left.counts.tolist() == [0 if e == 1 else n for e, n in enumerate(routing.counts.tolist())]


@pytest.mark.parametrize("name", sorted(ROUTERS.keys() - WAITS))
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_no_shape_depends_on_values(name: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without values, which a shape cannot depend on, nor what the host does; but the times it knows."""
    monkeypatch.setattr(experts, "on_cpu", experts.on_meta)  # as on a GPU, where no expert's rows are counted
    moe = layer(name)
    x, context = batch(name)
    context = replace(context, t_on_host=context.t.numpy())
    if packed:
        layout = Layout.pack([GRIDS[ROUTERS[name].axes]] * len(x), x.device)
        unmodulated = context.unmodulated.flatten(0, 1)[None]
        x, context = x.flatten(0, 1)[None], replace(context, layout=layout, unmodulated=unmodulated)
    for training in (True, False):
        with fixed_length(), FakeTensorMode(allow_non_fake_inputs=True):
            assert moe.train(training)(x, context)[0].shape == x.shape
