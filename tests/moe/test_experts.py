"""The experts: equal to a loop in values and gradients, however the rows are split, and counted for every router."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from ditmoe.config.cli import config_folder
from ditmoe.config.compose import composed
from ditmoe.cost.plan import count_config
from ditmoe.moe import Experts, Routing, Rows, experts, slices
from ditmoe.moe.slices import groups
from ditmoe.nn import Layout
from ditmoe.nn.layers import activate

D, E = 16, 5
SPLITS = {
    "even": [7, 7, 7, 7, 7],
    "skewed": [1, 90, 0, 33, 2],
    "empty at the ends": [0, 0, 40, 0, 0],
    "one row": [0, 1, 0, 0, 0],
    "no rows": [0, 0, 0, 0, 0],
    "whole blocks": [16, 32, 48, 16, 32],
}


def make(activation: str, counts: list[int], dtype: torch.dtype = torch.float32) -> tuple[Experts, Rows]:
    torch.manual_seed(0)
    module = Experts(E, D, 24, activation).to(dtype)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    split = torch.tensor(counts)
    expert = torch.arange(E).repeat_interleave(split)
    x = torch.randn(len(expert), D, dtype=dtype, requires_grad=True)
    weight = torch.rand(len(expert), dtype=dtype, requires_grad=True)
    return module, Rows(x, weight, expert, split, torch.zeros_like(expert))


def loop(module: Experts, x: Tensor, rows: Rows) -> Tensor:
    """The definition, row by row, differentiated by autograd."""
    out = []
    for a, e in enumerate(rows.expert.tolist()):
        h = module.up[e] @ x[a]
        h = h if module.up_bias is None else h + module.up_bias[e]
        y = module.down[e] @ activate(h, module.activation)
        y = y if module.down_bias is None else y + module.down_bias[e]
        out.append(rows.weight[a] * y)
    return torch.stack(out) if out else x * 0


def results(module: Experts, rows: Rows, y: Tensor) -> list[Tensor]:
    """The output, and the gradients of a loss that weighs each of its numbers differently."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(y.shape, generator=generator).to(y.dtype)
    sources = [rows.x, rows.weight, *module.parameters()]
    gradients = torch.autograd.grad((y * direction).sum(), sources, allow_unused=True)
    return [y, *(torch.zeros_like(s) if g is None else g for s, g in zip(sources, gradients, strict=True))]


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    return max(((p - q).norm() / q.norm().clamp_min(1e-6)).item() for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("activation", ["swiglu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("group", [1, 500, 2**18])
def test_equal_to_a_loop(activation: str, split: str, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "GROUP", group)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        module, rows = make(activation, SPLITS[split], dtype)
        ours = results(module, rows, module.compute(rows.x, rows))
        assert distance(ours, results(module, rows, loop(module, rows.x, rows))) < tolerance


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("group", [1, 2**18])
def test_bfloat16_is_as_near_as_bfloat16_is(
    activation: str, split: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "GROUP", group)
    monkeypatch.setattr(experts, "SMALL", 0)
    module, rows = make(activation, SPLITS[split])
    exact = results(module, rows, loop(module, rows.x, rows))
    with torch.autocast("cpu", torch.bfloat16):
        y = module.compute(rows.x, rows)
    assert y.dtype == torch.bfloat16
    ours = results(module, rows, y)
    assert [g.dtype for g in ours[1:]] == [torch.float32] * (len(ours) - 1)
    assert distance([g.float() for g in ours], exact) < 0.02


def test_small_products_stay_in_float32_under_autocast() -> None:
    module, rows = make("swiglu", SPLITS["even"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.compute(rows.x, rows), module.compute(rows.x.detach(), rows))
    assert module.compute(rows.x, rows).dtype == torch.float32


@pytest.mark.parametrize("activation", ["swiglu", "gelu_tanh"])
def test_gradients_are_the_derivatives(activation: str) -> None:
    module, rows = make(activation, [2, 0, 3, 1, 0], torch.float64)

    def function(x: Tensor, weight: Tensor, *weights: Tensor) -> Tensor:
        given = Rows(x, weight, rows.expert, rows.counts, rows.sample)
        names = dict(zip(dict(module.named_parameters()), weights, strict=True))
        return torch.func.functional_call(module, names, (given, torch.zeros(1, D, dtype=x.dtype)))

    assert torch.autograd.gradcheck(function, (rows.x, rows.weight, *module.parameters()), fast_mode=True)


def test_a_second_derivative_is_refused() -> None:
    module, rows = make("swiglu", SPLITS["even"])
    y = module.compute(rows.x, rows)
    (gradient,) = torch.autograd.grad(y.square().sum(), rows.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_backward_can_be_repeated() -> None:
    module, rows = make("gelu", SPLITS["skewed"])
    y = module.compute(rows.x, rows)
    first, second = (torch.autograd.grad(y.sum(), rows.x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_any_memory_layout() -> None:
    module, rows = make("swiglu", SPLITS["skewed"])
    wide = torch.stack([rows.x, -rows.x], dim=-1).detach()
    x = wide.requires_grad_()[..., 0]
    expected = module.compute(rows.x, rows)
    assert torch.equal(module.compute(x, rows), expected)
    module.compute(x, rows).sum().backward()  # an expanded gradient
    assert torch.allclose(wide.grad[..., 0], torch.autograd.grad(expected.sum(), rows.x)[0], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("split", SPLITS)
def test_slices_cover_all_rows_in_order(split: str, dtype: torch.dtype) -> None:
    counts = SPLITS[split]
    found = [part for group in groups(counts, torch.empty(0, 100, dtype=dtype)) for part in group.slices]
    assert [e for e, _, _ in found] == [e for e, count in enumerate(counts) if count]
    assert [here.start for _, here, _ in found] == [sum(counts[:e]) for e, _, _ in found]
    for e, here, count in found:
        assert count == counts[e]
        assert here.stop - here.start == (count if dtype == torch.float32 else -(-count // 16) * 16)


def test_a_token_may_have_any_number_of_experts() -> None:
    token, expert = torch.tensor([5, 0, 5, 2, 5]), torch.tensor([1, 0, 0, 1, 2])
    routing = Routing(token, expert, torch.ones(5), torch.zeros(6, 3))
    x = torch.randn(2, 3, D, requires_grad=True)
    layout = Layout.even((3,), 2, x.device)
    rows = routing.dispatch(x, layout)
    base = torch.randn(2, 3, D)
    out = routing.combine(rows.x * 2, rows, base, layout) - base
    times = torch.tensor([1, 0, 1, 0, 0, 3]).view(2, 3, 1)
    assert torch.allclose(out, 2 * times * x, atol=1e-6)
    out.sum().backward()
    assert torch.equal(x.grad, (2.0 * times).expand_as(x))


COMPILED = """
import torch
from ditmoe.nn import Layout
from ditmoe.moe import Context, MoE, TokenChoice
moe = MoE(TokenChoice(16, 5, 2), 16, 24, 12, "swiglu")
for p in moe.parameters():
    torch.nn.init.normal_(p, std=0.3)
x = torch.randn(3, 20, 16, requires_grad=True)
c = torch.zeros(3, 16)
context = Context(torch.zeros(3), c, c, Layout.even((20,), 3, x.device), x)
for layer in (moe, torch.compile(moe, backend="eager")):
    y = layer(x, context)[0]
    values = [y, *torch.autograd.grad(y.square().sum(), [x, *moe.parameters()])]
    expected = values if layer is moe else expected
assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(values, expected))
with torch.compiler.set_stance("fail_on_recompile"):  # other experts' counts are no other program
    for _ in range(3):
        layer(torch.randn(3, 20, 16, requires_grad=True), context)
"""


def test_the_compiled_layer_is_the_layer() -> None:
    # Without shape checks.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(p.stem for p in (config_folder() / "router").glob("*.yaml")))
def test_every_router_can_be_counted(name: str) -> None:
    config = composed("plan", ["model=debug", f"router={name}"])
    counts = count_config(config)[0]  # type: ignore[arg-type]
    assert 0 < counts.active <= counts.total
    if name in ("relu", "base", "sinkhorn", "timestep"):  # two experts a token, as token choice has
        plain = composed("plan", ["model=debug"])
        assert counts.multiply_adds == count_config(plain)[0].multiply_adds  # type: ignore[arg-type]
