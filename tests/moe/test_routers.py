"""Laws that hold for every router: what the layer computes, who sees whom, what moves and what does not."""

import copy

import pytest
import torch

from ditmoe.model import initialize_layers
from ditmoe.moe import MoE, TimestepExperts
from ditmoe.training import EMA
from tests.routers import POOLED, ROUTERS, B, D, E, N, batch, layer, loop, one

EVERY = pytest.mark.parametrize("name", list(ROUTERS))


def updated(name: str) -> tuple[MoE, torch.Tensor, object]:
    """A layer whose state has seen the batch once."""
    moe, (x, context) = layer(name), batch(name)
    moe.router.update([moe(x, context)[1].batch_stats])
    return moe, x, context


@EVERY
@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_equals_a_loop_over_tokens(name: str, training: bool) -> None:
    moe, x, context = updated(name)
    moe.train(training)
    assert torch.allclose(moe(x, context)[0], loop(moe, x, context, name), atol=1e-5)


@pytest.mark.parametrize("name", ["token_choice", "expert_choice", "relu"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gradients_equal_the_loops(name: str, activation: str) -> None:
    moe, (x, context) = layer(name, activation), batch(name)
    other = copy.deepcopy(moe)
    moe(x, context)[0].square().sum().backward()
    loop(other, x, context, name).square().sum().backward()
    for (own, p), q in zip(moe.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-3, rtol=1e-4), own


@EVERY
@torch.no_grad()
def test_samples_do_not_see_each_other_when_sampling(name: str) -> None:
    moe, x, context = updated(name)
    moe.train(name not in POOLED)  # the others not in training either
    together = moe(x, context)[0]
    for i in range(B):
        assert torch.allclose(moe(*one(x, context, i))[0], together[i : i + 1], atol=1e-5)
    moe.eval()
    assert torch.allclose(moe(*one(x, context, 0))[0], moe(x, context)[0][:1], atol=1e-5)


@EVERY
@torch.no_grad()
def test_the_same_result_in_both_modes(name: str) -> None:
    moe, x, context = updated(name)
    trained, routing = moe.train()(x, context)
    sampled, other = moe.eval()(x, context)
    if name == "batch_pool":  # chosen by scores and by their predictor: only the numbers agree
        assert routing.counts.tolist() == other.counts.tolist()
    else:  # a race's threshold, taken from this batch, lets the same entries through
        assert torch.allclose(trained, sampled, atol=1e-5)


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_expert_and_the_router(name: str, training: bool) -> None:
    moe, (x, context) = layer(name), batch(name, size=24)
    moe.router.update([moe(x, context)[1].batch_stats])
    out, routing = moe.train(training)(x, context)
    extra = sum(loss.value for loss in routing.losses.values())
    if routing.aux_prediction is not None:
        extra = extra + routing.aux_prediction.square().mean()
    (out.square().mean() + extra).backward()
    for own, p in moe.named_parameters():
        if training or not any(
            part in own for part in ("aux_head", "batch_pool", "router.first", "router.second")
        ):
            assert p.grad is not None, own
            assert p.grad.any(), own
    for weight in (moe.experts.up, moe.experts.down):
        assert weight.grad.flatten(1).norm(dim=1).min() > 0


@EVERY
def test_the_gradient_of_its_losses_does_not_change_with_the_loss_scale(name: str) -> None:
    gradients = []
    for scale in (1.0, 65536.0):
        moe, (x, context) = layer(name), batch(name)
        losses = moe(x, context)[1].losses
        if not losses:
            pytest.skip("it has no loss of its own")
        (sum(loss.value for loss in losses.values()) * scale).backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in moe.router.parameters() if p.grad is not None]) / scale
        )
    assert gradients[0].norm() > 0
    assert torch.allclose(*gradients, rtol=1e-4)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_scores_stay_float32(name: str, dtype: torch.dtype) -> None:
    moe, x, context = updated(name)
    full = moe.eval()(x, context)[0]
    with torch.autocast("cpu", dtype):
        out, routing = moe(x, context)
    assert routing.scores.dtype == torch.float32
    assert (out.float() - full).abs().median() < 0.03
    half = type(context)(
        *(v.to(dtype) for v in (context.t, context.time, context.c)),
        context.layout,
        context.unmodulated.to(dtype),
    )
    for training in (True, False):
        out, routing = moe.to(dtype).train(training)(x.to(dtype), half)
        assert out.dtype == dtype
        assert routing.scores.dtype == torch.float32
        out.float().square().mean().backward()
        assert moe.experts.up.grad.isfinite().all()


@EVERY
def test_a_forward_pass_changes_nothing_and_state_travels(name: str) -> None:
    moe, (x, context) = layer(name), batch(name)
    before = copy.deepcopy(moe.state_dict())
    batch_stats = moe(x, context)[1].batch_stats
    assert all(torch.equal(v, before[k]) for k, v in moe.state_dict().items())
    ema = EMA(moe, 0.9)
    moe.router.update([batch_stats])
    moved = [k for k, v in moe.state_dict().items() if not torch.equal(v, before[k])]
    assert set(moved) <= {k for k, _ in moe.named_buffers()}
    assert bool(moved) == (name in POOLED or name in ("relu", "sigmoid and bias"))
    ema.update(moe, 0)
    for (k, v), w in zip(moe.named_buffers(), ema.model.buffers(), strict=True):
        assert torch.equal(v, w), k
    other = layer(name)
    other.load_state_dict(moe.state_dict())
    assert torch.equal(other.eval()(x, context)[0], moe.eval()(x, context)[0])


@EVERY
@torch.no_grad()
def test_the_order_of_the_samples_is_no_matter(name: str) -> None:
    moe, x, context = updated(name)
    order = torch.tensor([2, 0, 1])
    values = (v[order] for v in (context.t, context.time, context.c))
    turned = type(context)(*values, context.layout, context.unmodulated[order])
    for training in (True, False):
        moe.train(training)
        assert torch.allclose(moe(x[order], turned)[0], moe(x, context)[0][order], atol=1e-5)


@pytest.mark.parametrize("name", [n for n in ROUTERS if "in order" not in n and not n.startswith("diff_moe")])
@torch.no_grad()
def test_the_order_of_the_tokens_is_no_matter_without_a_grid(name: str) -> None:
    moe, x, context = updated(name)
    order = torch.randperm(N)
    turned = type(context)(context.t, context.time, context.c, context.layout, context.unmodulated[:, order])
    assert torch.allclose(moe(x[:, order], turned)[0], moe(x, context)[0][:, order], atol=1e-5)


@pytest.mark.parametrize("name", [n for n in ROUTERS if not n.startswith("timestep")])
@torch.no_grad()
def test_every_token_router_runs_within_noise_segments(name: str) -> None:
    if not layer(name).router.within_timestep:
        with pytest.raises(ValueError, match=r"got (Soft|DiffMoE)$"):
            TimestepExperts(D, [500], ROUTERS[name])
        return
    whole, (x, context) = TimestepExperts(D, [500], ROUTERS[name]), batch(name)
    for router in whole.routers:
        initialize_layers(router)
    routing = whole(x, context)
    early = [b for b in range(B) if context.t[b] < 500]
    part = whole.routers[0](
        x[early],
        type(context)(
            *(v[early] for v in (context.t, context.time, context.c)),
            context.layout.take(early),
            context.unmodulated[early],
        ),
    )
    assert len(part.expert) == int((routing.expert < E).sum())
    assert routing.scores.shape == (B * N, 2 * E)
    whole.update([routing.batch_stats])
