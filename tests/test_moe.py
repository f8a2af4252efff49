"""The mixture: equal to a loop over tokens, the same in both modes, balanced by a loss that scales."""

import copy

import pytest
import torch

from ditmoe.layers import FeedForward, activate
from ditmoe.moe import Experts, MoE, Routing, TokenChoice, balance_loss, load

D, E, K = 16, 5, 2


def layer(activation: str = "swiglu", renormalize: bool = False, shared: bool = True, top_k: int = K) -> MoE:
    torch.manual_seed(0)
    moe = MoE(
        TokenChoice(D, E, top_k, renormalize),
        Experts(E, D, 24, activation),
        FeedForward(D, 12, activation) if shared else None,
    )
    with torch.no_grad():
        for p in moe.parameters():
            p.normal_(std=0.3)
    return moe


def loop(moe: MoE, x: torch.Tensor) -> torch.Tensor:
    """The definition, token by token."""
    out = torch.zeros_like(x)
    experts = moe.experts
    for b in range(x.shape[0]):
        for n in range(x.shape[1]):
            h = x[b, n]
            scores = torch.softmax(moe.router.weight @ h, dim=0)
            best = sorted(range(E), key=lambda e: -scores[e].item())[: moe.router.top_k]
            total = sum(scores[e] for e in best) if moe.router.renormalize else 1.0
            for e in best:
                up = experts.up[e] @ h + (0 if experts.up_bias is None else experts.up_bias[e])
                y = experts.down[e] @ activate(up, experts.activation)
                y = y + (0 if experts.down_bias is None else experts.down_bias[e])
                out[b, n] += scores[e] / total * y
            if moe.shared is not None:
                out[b, n] += moe.shared(h)
    return out


@pytest.mark.parametrize("activation", ["swiglu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(
    ("renormalize", "shared", "top_k"),
    [(False, True, 2), (True, False, 2), (False, True, 1), (False, True, E)],
)
@torch.no_grad()
def test_equals_a_loop_over_tokens(activation: str, renormalize: bool, shared: bool, top_k: int) -> None:
    moe = layer(activation, renormalize, shared, top_k)
    x = torch.randn(3, 7, D)
    assert torch.allclose(moe(x)[0], loop(moe, x), atol=1e-5)


def test_training_and_evaluation_are_the_same_code() -> None:
    moe, x = layer(), torch.randn(2, 9, D)
    trained = moe.train()(x)[0]
    assert torch.equal(trained, moe.eval()(x)[0])


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_expert_and_the_router(training: bool) -> None:
    moe = layer().train(training)
    out, _ = moe(torch.randn(4, 32, D))
    out.square().mean().backward()
    assert moe.router.weight.grad.norm(dim=1).min() > 0
    assert moe.experts.up.grad.flatten(1).norm(dim=1).min() > 0
    assert moe.experts.down.grad.flatten(1).norm(dim=1).min() > 0


def test_gradients_equal_the_loop() -> None:
    moe, x = layer("gelu"), torch.randn(2, 6, D)
    other = copy.deepcopy(moe)
    moe(x)[0].square().sum().backward()
    loop(other, x).square().sum().backward()
    for (name, p), q in zip(moe.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-4), name


def test_an_expert_nobody_chose_is_no_obstacle() -> None:
    moe = layer(top_k=1)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[2] = 1.0
    x = torch.rand(1, 8, D)
    out, routing = moe(x)
    assert routing.counts.tolist() == [0, 0, 8, 0, 0]
    out.sum().backward()
    assert not moe.experts.up.grad[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_routes_in_float32(dtype: torch.dtype) -> None:
    moe, x = layer(), torch.randn(2, 16, D)
    full = moe(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        out, routing = moe(x)
    assert routing.scores.dtype == torch.float32
    assert torch.allclose(out.float(), full, atol=0.15)
    half, routing = moe.to(dtype)(x.to(dtype))
    assert routing.scores.dtype == torch.float32
    assert torch.allclose(half.float(), full, atol=0.3)


@pytest.mark.parametrize("top_k", [0, E + 1])
def test_top_k_must_fit(top_k: int) -> None:
    with pytest.raises(ValueError, match=f"num_experts = {E}, got {top_k}"):
        TokenChoice(D, E, top_k)


def routing(experts: list[int], scores: torch.Tensor) -> Routing:
    expert = torch.tensor(experts)
    return Routing(torch.arange(len(experts)), expert, torch.ones(len(experts)), scores)


def test_balance_is_one_when_even_and_e_when_collapsed() -> None:
    even = routing([0, 1, 2, 3], torch.full((4, 4), 0.25))
    collapsed = routing([2, 2, 2, 2], torch.eye(4)[2].expand(4, 4))
    assert balance_loss([even]).item() == pytest.approx(1.0)
    assert balance_loss([collapsed]).item() == pytest.approx(4.0)
    assert balance_loss([even, collapsed]).item() == pytest.approx(2.5)
    assert load(collapsed).tolist() == [0, 0, 1, 0]


def test_balance_gradient_does_not_change_with_the_loss_scale() -> None:
    x = torch.randn(2, 32, D)
    gradients = []
    for scale in (1.0, 65536.0):
        moe = layer()
        (balance_loss([moe(x)[1]]) * scale).backward()
        gradients.append(moe.router.weight.grad / scale)
    assert gradients[0].norm() > 0
    assert torch.allclose(*gradients, rtol=1e-4)


def test_balance_loss_evens_out_the_load() -> None:
    moe = layer()
    with torch.no_grad():
        moe.router.weight[0] += 1.0
    x = torch.randn(4, 64, D) + 0.5
    optimizer = torch.optim.Adam([moe.router.weight], lr=0.02)
    before = load(moe(x)[1]).max()
    for _ in range(150):
        optimizer.zero_grad()
        balance_loss([moe(x)[1]]).backward()
        optimizer.step()
    assert before > 0.35
    assert load(moe(x)[1]).max() < 0.26


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_grouped_product_on_the_gpu_equals_the_cpu(activation: str) -> None:
    moe, x = layer(activation), torch.randn(2, 64, D)
    on_gpu = copy.deepcopy(moe).cuda().bfloat16()
    y = on_gpu(x.cuda().bfloat16())[0].float().cpu()
    assert torch.allclose(y, moe(x)[0], atol=0.3)
