"""Packed sequences: what a sample is packed with changes nothing, and attention stays within its groups."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from ditmoe import DiTMoE
from ditmoe.moe import Context, ExpertChoice, TokenChoice
from ditmoe.nn import Groups, Layout, attend, attend_within
from ditmoe.nn.attention_groups import WITHIN
from modalities.image import LatentTokens
from modalities.video import SpacetimeTokens

CPU = torch.device("cpu")


@pytest.mark.parametrize("lengths", [(7,), (3, 9, 3), (1, 700, 2), (4, 4, 4, 4)])
def test_attention_stays_within_segments(lengths: tuple[int, ...]) -> None:
    q, k, v = (torch.randn(1, 2, sum(lengths), 8, requires_grad=True) for _ in range(3))
    sample = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    scores = (q @ k.transpose(-2, -1) * 8**-0.5).masked_fill(sample[:, None] != sample, -torch.inf)
    groups = Layout.pack([(n,) for n in lengths], CPU).groups("all")
    found = [scores.softmax(-1) @ v, attend_within(q, k, v, groups)]
    gradients = [torch.autograd.grad(y.sin().sum(), (q, k, v)) for y in found]
    assert torch.allclose(*found, atol=1e-5)
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def friends(layout: Layout, within: str, window: tuple[int, ...]) -> Tensor:
    """(N, N) who attends to whom, read off the attention itself."""
    groups, n = layout.groups(within, window), len(layout.cells)
    if groups is None:
        return torch.ones(n, n, dtype=torch.bool)
    order, back = (torch.arange(n) if i is None else i for i in (groups.order, groups.back))
    zero, v = torch.zeros(1, 1, n, n), torch.eye(n)[order][None, None]
    return attend_within(zero, zero, v, groups)[0, 0, back] > 0


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("kind", ["even", "pack", "partly"])
def test_groups_are_what_they_say(within: str, kind: str) -> None:
    window = (2, 3, 2)
    some = np.random.default_rng(0).random((4, 5, 6)) < 0.4
    kept = torch.from_numpy(np.argwhere(some))
    layout = {
        "even": Layout.even((4, 5, 6), 2, CPU),
        "pack": Layout.pack([(4, 5, 6), (1, 2, 3), (2, 7, 3)], CPU),
        "partly": Layout.partly((4, 5, 6), torch.cat([kept, kept[:7]]), [len(kept), 7]),
    }[kind]
    cells = layout.cells
    moved = cells + torch.tensor(window) // 2
    size = torch.tensor(window)
    value = {
        "all": cells[:, :0],
        "space": cells[:, :1],
        "time": cells[:, 1:],
        "window": cells // size,
        "shifted": moved // size,
    }[within]
    expected = (value[:, None] == value).all(-1)
    if kind != "even":
        expected &= layout.sample[:, None] == layout.sample
    assert torch.equal(friends(layout, within, window), expected)


@pytest.mark.parametrize(
    "router", [partial(ExpertChoice, capacity=1.0), partial(TokenChoice, top_k=1, capacity=1.0)]
)
def test_experts_have_room_for_one_token_of_a_small_packed_sample(router: partial) -> None:
    torch.manual_seed(0)
    net = router(8, num_experts=4)
    torch.nn.init.normal_(net.weight)
    x, t, c = torch.randn(1, 17, 8), torch.full((2,), 500.0), torch.zeros(2, 8)
    routing = net(x, Context(t, c, c, Layout.pack([(1, 1), (4, 4)], CPU), x))
    assert (routing.token == 0).any()
    with pytest.raises(ValueError, match="at least one token per expert"):
        net(x[:, :2], Context(t[:1], c[:1], c[:1], Layout.even((1, 2), 1, CPU), x[:, :2]))


def model(tokens, attention: str = "full", rope: bool = False) -> DiTMoE:
    torch.manual_seed(0)
    router = partial(TokenChoice, num_experts=4, top_k=2)
    window = None if attention != "window" else [2] * tokens.axes
    net = DiTMoE(tokens, 10, 24, 4, 2, router, attention=attention, window=window, rope=rope)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.2)
    return net


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("attention", ["full", "factorised", "window"])
@torch.no_grad()
def test_a_model_of_packed_clips_is_the_model_of_each(attention: str, rope: bool) -> None:
    tokens = SpacetimeTokens(24, 3, patch=(1, 2, 2))
    net = model(tokens, attention, rope)
    clips = [torch.randn(1, 3, *size) for size in [(5, 4, 6), (1, 8, 4), (3, 4, 4)]]
    t, y = torch.tensor([5.0, 400.0, 900.0]), torch.tensor([1, 2, 10])
    layouts = [tokens.layout(clip) for clip in clips]
    rows = torch.cat([tokens.patchify(*pair) for pair in zip(clips, layouts, strict=True)], dim=1)
    whole = net.predict(rows, Layout.pack([layout.grids[0] for layout in layouts], CPU), t, y)[0]
    parts = []
    for i, clip in enumerate(clips):
        prediction = net(clip, t[i : i + 1], y[i : i + 1])[0]
        parts.append(tokens.patchify(prediction, layouts[i]))
    assert torch.allclose(whole, torch.cat(parts, dim=1), atol=1e-4)


@torch.no_grad()
def test_a_change_outside_the_window_changes_nothing_inside() -> None:
    net = model(LatentTokens(24, 3), "window")
    net.blocks = net.blocks[:1]
    x, t, y = torch.randn(1, 3, 12, 8), torch.tensor([300.0]), torch.tensor([4])
    before = net(x, t, y)[0]
    x[..., 4:8, 0:4] += 1  # tokens 2..3, 0..1: the second window of rows
    moved = (net(x, t, y)[0] - before).abs().amax(dim=(0, 1)) > 1e-6
    assert moved[4:8, 0:4].all()
    assert moved.sum() == 16


def test_neighbours_lie_where_they_should() -> None:
    layout = Layout.pack([(3, 4), (1, 1), (4, 2)], CPU)
    places = {
        (s, *c): i for i, (s, c) in enumerate(zip(layout.sample.tolist(), layout.cells.tolist(), strict=True))
    }
    for k, found in enumerate(layout.neighbours(3)):
        dy, dx = k // 3 - 1, k % 3 - 1
        for (s, y, x), i in places.items():
            assert found[i] == places.get((s, y + dy, x + dx), len(places))


def test_an_empty_sample_is_named() -> None:
    with pytest.raises(ValueError, match="sample 1 of the batch has no token"):
        Layout.partly((2, 2), torch.zeros(3, 2, dtype=torch.int64), [3, 0])


def test_one_time_per_frame_is_for_samples_of_one_size() -> None:
    with pytest.raises(
        ValueError, match=r"^times must be \(2,\), one per sample, or \(1, 6\), one per token"
    ):
        Layout.pack([(2, 2), (1, 2)], CPU).spread(torch.zeros(2, 2, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_size", [12, 32])
def test_the_kernel_of_variable_lengths_agrees(dtype: torch.dtype, head_size: int) -> None:
    lengths = (5, 120, 1, 33)
    q, k, v = torch.randn(3, 1, 4, sum(lengths), head_size, device="cuda").to(dtype)
    found = attend_within(q, k, v, Groups(None, None, tuple((1, n) for n in lengths)))
    parts = [attend(*part) for part in zip(*(z.split(lengths, dim=-2) for z in (q, k, v)), strict=True)]
    assert torch.allclose(found, torch.cat(parts, dim=-2), atol=1e-2 if dtype == torch.bfloat16 else 1e-3)
