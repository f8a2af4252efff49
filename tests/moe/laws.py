"""What holds for every router: functions of a subject (`tests.routers.Subject`), run over all that are found.

Each is a law of its own: it makes small layers of the router and asserts. `tests/moe/test_routers.py` runs them all.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ditmoe.analysis import dropped
from ditmoe.model import initialize_layers
from ditmoe.model.mup import compare
from ditmoe.moe import BatchPool, Context, Experts, MoE, Place, Router, Routing, TimestepExperts
from ditmoe.nn import Layout
from ditmoe.parallel import Mesh
from ditmoe.parallel.mesh import _let_fsdp_see
from ditmoe.training import EMA
from tests.routers import GRIDS, B, D, N, Subject, asked, batch, layer, loop, one

LAWS: list[Callable[[Subject], None]] = []
MODES = (True, False)
CPU = torch.device("cpu")
SIZES = {1: [(5,), (12,), (8,)], 2: [(3, 4), (2, 2), (5, 3)], 3: [(3, 2, 2), (2, 2, 2), (2, 3, 4)]}
"""Grids of three samples that are packed together."""


def law(check: Callable[[Subject], None]) -> Callable[[Subject], None]:
    LAWS.append(check)
    return check


def updated(of: Subject, size: int = B) -> tuple[MoE, Tensor, Context]:
    """A layer whose state has seen the batch once."""
    moe, (x, context) = layer(of), batch(of, size)
    with torch.no_grad():
        moe.router.update([moe(x, context)[1].batch_stats])
    return moe, x, context


def packed(of: Subject) -> tuple[Tensor, Context]:
    """Three samples of different sizes on one row."""
    layout = Layout.pack(SIZES[of.axes], CPU)
    g = torch.Generator().manual_seed(3)
    x, unmodulated = (torch.randn(1, sum(layout.lengths), D, generator=g) for _ in range(2))
    time, c = (torch.randn(3, D, generator=g) for _ in range(2))
    t = torch.tensor([100.0, 500.0, 900.0])
    return x, Context(t, time, c, layout, unmodulated, asked(3))


def changed(make: Callable[..., Router], **options: object) -> Callable[..., Router] | None:
    """The same router with other options, or the one within its segments; None if it does not have them."""
    known = getattr(make, "keywords", {})
    if options.keys() <= known.keys():
        return partial(make, **options)
    inner = known.get("router") and changed(known["router"], **options)
    return partial(make, router=inner) if inner else None


def innermost(router: Router) -> Router:
    return innermost(router.routers[0]) if isinstance(router, TimestepExperts) and router.routers else router


# --- what it computes


@law
@torch.no_grad()
def equals_a_loop_over_tokens(of: Subject) -> None:
    moe, x, context = updated(of)
    for training in MODES:
        moe.train(training)
        assert torch.allclose(moe(x, context)[0], loop(moe, x, context), atol=1e-5)


@law
@torch.no_grad()
def the_same_result_in_both_modes(of: Subject) -> None:
    moe, x, context = updated(of)
    trained, routing = moe.train()(x, context)
    sampled, other = moe.eval()(x, context)
    if type(moe.router) is BatchPool:  # chosen by scores and by their predictor: only the numbers agree
        assert routing.counts.tolist() == other.counts.tolist()
    else:  # a race's threshold, taken from this batch, lets the same entries through
        assert torch.allclose(trained, sampled, atol=1e-5)


@law
def gradients_reach_every_expert_and_the_router(of: Subject) -> None:
    for training in MODES:
        moe, x, context = updated(of, size=24)
        out, routing = moe.train(training)(x, context)
        extra = sum(loss.value for loss in routing.losses.values())
        if routing.aux_prediction is not None:
            extra = extra + routing.aux_prediction.square().mean()
        (out.square().mean() + extra).backward()
        for own, p in moe.named_parameters():
            if training or not own.startswith("router."):  # which may have some that only training needs
                assert p.grad is not None, own
                assert p.grad.any(), own
        for weight in (moe.experts.up, moe.experts.down):
            assert weight.grad.flatten(1).norm(dim=1).min() > 0


@law
def the_gradient_of_its_losses_does_not_change_with_the_loss_scale(of: Subject) -> None:
    gradients = []
    for scale in (1.0, 65536.0):
        moe, (x, context) = layer(of), batch(of)
        losses = moe(x, context)[1].losses
        if not losses:
            return
        (sum(loss.value for loss in losses.values()) * scale).backward()
        grads = [p.grad.flatten() for p in moe.router.parameters() if p.grad is not None]
        gradients.append(torch.cat(grads) / scale)
    assert gradients[0].norm() > 0
    assert torch.allclose(*gradients, rtol=1e-4)


@law
def half_precision_runs_and_scores_stay_float32(of: Subject) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        moe, x, context = updated(of)
        full = moe.eval()(x, context)[0]
        with torch.autocast("cpu", dtype):
            out, routing = moe(x, context)
        assert routing.scores.dtype == routing.weight.dtype == torch.float32
        assert (out.float() - full).abs().median() < 0.03
        given = (v.to(dtype) for v in (context.t, context.time, context.c))
        half = Context(*given, context.layout, context.unmodulated.to(dtype), context.asked)
        for training in MODES:
            out, routing = moe.to(dtype).train(training)(x.to(dtype), half)
            assert out.dtype == dtype
            assert routing.scores.dtype == routing.weight.dtype == torch.float32
            out.float().square().mean().backward()
            assert moe.experts.up.grad.isfinite().all()


@law
def a_forward_pass_changes_nothing_and_state_travels(of: Subject) -> None:
    moe, (x, context) = layer(of), batch(of)
    before = copy.deepcopy(moe.state_dict())
    batch_stats = moe(x, context)[1].batch_stats
    assert all(torch.equal(v, before[k]) for k, v in moe.state_dict().items())
    ema = EMA(moe, 0.9)
    moe.router.update([batch_stats])
    moved = {k for k, v in moe.state_dict().items() if not torch.equal(v, before[k])}
    buffers = {k for k, _ in moe.named_buffers()}
    assert moved <= buffers
    assert bool(moved) == bool(buffers)  # there is none but what an update moves
    ema.update(moe, 0)
    for (k, v), w in zip(moe.named_buffers(), ema.model.buffers(), strict=True):
        assert torch.equal(v, w), k
    other = layer(of)
    other.load_state_dict(moe.state_dict())
    assert torch.equal(other.eval()(x, context)[0], moe.eval()(x, context)[0])


@law
@torch.no_grad()
def what_is_chosen_can_be_told_and_taken_out(of: Subject) -> None:
    """As the routings themselves say; a layer is afterwards what it was, to the bit."""
    moe, x, context = updated(of)
    whole, routing = moe.eval()(x, context)
    chosen = routing.chosen
    assert chosen.shape == routing.scores.shape
    plain = type(routing) is Routing
    assert (
        torch.equal(chosen.sum(0), routing.counts.float())
        if plain
        else chosen.sum(1).allclose(torch.ones(B * N))
    )
    for expert in range(chosen.shape[1]):
        with dropped(moe, expert):
            out, other = moe(x, context)
        mine = chosen[:, expert] > 0
        assert not other.chosen[:, expert].any()
        same = (out == whole).flatten(0, 1).all(-1)
        assert same[~mine].all(), "who did not go there is what he was"
        assert not same[mine].any()
    with dropped(moe, None):
        alone = moe(x, context)[0]
    base = torch.zeros_like(x) if moe.shared is None else moe.through_shared(x, context)
    base = base if moe.branch is None else base + moe.branch(x, context)
    assert torch.equal(alone, base)
    assert torch.equal(moe(x, context)[0], whole)


# --- who sees whom


@law
@torch.no_grad()
def samples_do_not_see_each_other(of: Subject) -> None:
    moe, x, context = updated(of)
    for training in MODES:
        if training and moe.router.competes:
            continue
        together = moe.train(training)(x, context)[0]
        for i in range(B):
            assert torch.allclose(moe(*one(x, context, i))[0], together[i : i + 1], atol=1e-5)


@law
@torch.no_grad()
def the_order_of_the_samples_is_no_matter(of: Subject) -> None:
    moe, x, context = updated(of)
    order = torch.tensor([2, 0, 1])
    values = (v[order] for v in (context.t, context.time, context.c))
    turned = Context(*values, context.layout, context.unmodulated[order], context.asked.take(order))
    for training in MODES:
        moe.train(training)
        assert torch.allclose(moe(x[order], turned)[0], moe(x, context)[0][order], atol=1e-5)


@law
@torch.no_grad()
def the_order_of_the_tokens_is_no_matter_without_a_grid(of: Subject) -> None:
    moe, x, context = updated(of)
    router = innermost(moe.router)
    if moe.branch is not None or router.positional or not getattr(router, "priority", True):
        return  # it works on the grid, or tokens that stand first come first
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    turned = replace(context, unmodulated=context.unmodulated[:, order])
    assert torch.allclose(moe(x[:, order], turned)[0], moe(x, context)[0][:, order], atol=1e-5)


@law
@torch.no_grad()
def a_sample_does_not_depend_on_what_it_is_packed_with(of: Subject) -> None:
    moe, (x, context) = layer(of), packed(of)
    moe.router.update([moe.router(x, context).batch_stats])
    for training in MODES:
        if training and moe.router.competes:
            continue
        whole, routing = moe.train(training)(x, context)
        parts = [moe(*_alone(x, context, i)) for i in range(3)]
        assert torch.allclose(whole, torch.cat([y for y, _ in parts], dim=1), atol=1e-5)
        assert len(routing.expert) == sum(len(r.expert) for _, r in parts)


def _alone(x: Tensor, context: Context, i: int) -> tuple[Tensor, Context]:
    """One of the packed samples on a row of a batch."""
    own, grid = context.layout.sample == i, context.layout.grids[i]
    t, time, c = (v[i : i + 1] for v in (context.t, context.time, context.c))
    layout, null = Layout.even(grid, 1, CPU), context.asked.take(torch.tensor([i]))
    return x[:, own], Context(t, time, c, layout, context.unmodulated[:, own], null)


@law
def equal_samples_are_the_same_packed_or_not(of: Subject) -> None:
    moe, (_, context) = layer(of), packed(of)
    grid, n = SIZES[of.axes][0], context.layout.lengths[0]
    x, unmodulated = torch.randn(2, 1, 3 * n, D, generator=torch.Generator().manual_seed(6))
    row = replace(context, layout=Layout.pack([grid] * 3, CPU), unmodulated=unmodulated)
    even = replace(context, layout=Layout.even(grid, 3, CPU), unmodulated=unmodulated.view(3, n, D))
    found = []
    for tokens, inside in ((x, row), (x.view(3, n, D), even)):
        moe.zero_grad()
        y, routing = moe(tokens, inside)
        objective = y.square().mean() + sum(loss.value * loss.coefficient for loss in routing.losses.values())
        objective.backward()
        gradients = [p.grad for p in moe.parameters() if p.grad is not None]
        found.append([y.flatten(), routing.load, *gradients])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@law
@torch.no_grad()
def a_token_gets_what_its_own_time_says(of: Subject) -> None:
    """Not what the mean of its sample's times says; or times of tokens are refused in one line."""
    moe, x, context = updated(of)
    moe.eval()
    choice = torch.randint(B, (B, N), generator=torch.Generator().manual_seed(4))  # whose time each token has
    for on_rows in (False, True):
        layout, where, unmodulated = context.layout, choice, context.unmodulated
        if on_rows:
            layout, where = Layout.pack([GRIDS[of.axes]] * B, CPU), choice.view(1, -1)
            x, unmodulated = x.view(1, B * N, D), unmodulated.view(1, B * N, D)
        values = [context.t, context.time, context.c]
        mixed = Context(*(v[where] for v in values), layout, unmodulated, context.asked)
        try:
            out, routing = moe(x, mixed)
        except ValueError as error:
            if not re.fullmatch(r"[^\n]* no time per frame or token", str(error)):
                raise
            continue
        scores, each = routing.scores.view(*where.shape, -1), _chosen_each_for_itself(moe, x, mixed)
        if isinstance(moe.router, TimestepExperts):
            edges = torch.tensor(moe.router.boundaries)
            segment = torch.bucketize(mixed.t, edges, right=True).flatten()[routing.token]
            assert torch.equal(routing.expert // moe.router.per_segment, segment)
        for i in range(B):
            here, times = where == i, (v[i].expand(B, *v.shape[1:]).contiguous() for v in values)
            expected, own = moe(x, Context(*times, layout, unmodulated, context.asked))
            assert torch.allclose(scores[here], own.scores.view_as(scores)[here], atol=1e-5)
            if each:
                assert torch.allclose(out[here], expected[here], atol=1e-5)


def _chosen_each_for_itself(moe: MoE, x: Tensor, context: Context) -> bool:
    """Whether what is chosen for every other token stays when all others are exchanged."""
    g = torch.Generator().manual_seed(8)
    before, kept = _rows_of(moe.router(x, context)), torch.arange(x.shape[1]) % 2 == 0
    for _ in range(3):
        new, more = (torch.randn(x.shape, generator=g) for _ in range(2))
        unmodulated = torch.where(kept[:, None], context.unmodulated, more)
        after = _rows_of(
            moe.router(torch.where(kept[:, None], x, new), replace(context, unmodulated=unmodulated))
        )
        if {row for row in before if row[0] % 2 == 0} != {row for row in after if row[0] % 2 == 0}:
            return False
    return True


def _rows_of(routing: Routing) -> set[tuple[int, int]]:
    return set(zip(routing.token.tolist(), routing.expert.tolist(), strict=True))


# --- what it says that it can do


@law
def it_returns_the_kind_of_routing_that_it_names_with_tensors_that_fsdp_finds(of: Subject) -> None:
    from torch.utils import _pytree

    moe, x, context = updated(of)
    x.requires_grad_()
    for training in MODES:
        routing = moe.train(training)(x, context)[1]
        assert type(routing) is moe.router.routing
        _let_fsdp_see(type(routing))
        seen = {id(leaf) for leaf in _pytree.tree_leaves(routing)}
        for name, value in vars(routing).items():
            assert not isinstance(value, Tensor) or id(value) in seen, name


@law
@torch.no_grad()
def top_k_matters_in_sampling_exactly_where_it_is_claimed(of: Subject) -> None:
    taken, start = [], updated(of)[0].state_dict()
    for top_k in (1, 3):
        if (make := changed(of.make, top_k=top_k)) is None:
            return
        moe = layer(replace(of, make=make))
        moe.load_state_dict(start)
        routing = moe.eval()(*batch(of))[1]
        taken.append(len(routing.token) + int(routing.dropped or 0))
    if innermost(moe.router).top_k_in_sampling:
        assert taken == [B * N, 3 * B * N]
    else:
        assert taken[0] == taken[1]


@law
@torch.no_grad()
def within_timestep_it_does_what_it_does_alone_or_is_refused(of: Subject) -> None:
    moe, x, context = updated(of)
    if not moe.router.within_timestep:
        line = rf"^the router within timestep [^\n]* got {type(moe.router).__name__}$"
        with pytest.raises(ValueError, match=line):
            TimestepExperts(D, [950], of.make)
        return
    all_in_one = replace(of, make=partial(TimestepExperts, boundaries=[950], router=of.make))
    whole = updated(all_in_one)[0]
    whole.router.routers[0].load_state_dict(moe.router.state_dict())
    whole.shared.load_state_dict(moe.shared.state_dict())
    for stacked, weight in zip(whole.experts.parameters(), moe.experts.parameters(), strict=True):
        stacked[: len(weight)] = weight
    for training in MODES:
        expected = moe.train(training)(x, context)[0]
        assert torch.allclose(whole.train(training)(x, context)[0], expected, atol=1e-5)
    _each_segment_has_its_samples(of, x, context)


def _each_segment_has_its_samples(of: Subject, x: Tensor, context: Context) -> None:
    whole = TimestepExperts(D, [500], of.make)
    for router in whole.routers:
        initialize_layers(router)
    routing, early = whole(x, context), [b for b in range(B) if context.t[b] < 500]
    times = (v[early] for v in (context.t, context.time, context.c))
    null = context.asked.take(torch.tensor(early))
    inside = Context(*times, context.layout.take(early), context.unmodulated[early], null)
    part, num_experts = whole.routers[0](x[early], inside), whole.routers[0].num_experts
    assert len(part.expert) == int((routing.expert < num_experts).sum())
    assert routing.scores.shape == (B * N, 2 * num_experts)
    whole.update([routing.batch_stats])


@law
@torch.no_grad()
def experts_that_may_be_spread_need_their_rows_alone_and_others_are_refused(of: Subject) -> None:
    moe, (x, context) = layer(of), batch(of)
    rows = moe.router(x, context).dispatch(x, context.layout)
    if moe.experts.spreadable:
        alone = replace(rows, sample=None, places=None)
        assert torch.equal(moe.experts(alone, context.c + 1), moe.experts(rows, context.c))
        return
    line = rf"^mesh.expert must be 1 for the router {type(moe.router).__name__}, [^\n]*$"
    with pytest.raises(ValueError, match=line):
        Mesh._spread_experts(SimpleNamespace(expert=2), moe)  # type: ignore[arg-type]


@law
@torch.no_grad()
def weights_sum_to_one_where_that_is_claimed(of: Subject) -> None:
    for renormalize in (True, False):
        moe = updated(replace(of, make=changed(of.make, renormalize=renormalize) or of.make))[0]
        for training in MODES:
            routing = moe.train(training)(*batch(of))[1]
            total = torch.zeros(B * N).index_add(0, routing.token, routing.weight)
            assert not moe.router.weights_sum_to_one or torch.allclose(total, torch.ones(B * N), atol=1e-5)


@law
def a_subclass_claims_nothing_and_is_refused(of: Subject) -> None:
    kind = type(of.make(hidden_size=D))
    own = type("Own", (kind,), {})
    assert not any(getattr(own, claim) for claim in Router.CLAIMS)
    with pytest.raises(ValueError, match=r"^the router within timestep [^\n]* got Own$"):
        TimestepExperts(D, [500], partial(own, **getattr(of.make, "keywords", {})))
    experts = type(layer(of).experts)
    assert issubclass(experts, Experts)
    assert not type("OwnExperts", (experts,), {}).spreadable


@law
def the_shapes_say_how_each_weight_follows_the_width(of: Subject) -> None:
    """By which muP lets it start and learn: none is left out or guessed."""

    def at(width: int) -> MoE:
        router = of.make(hidden_size=width)
        router.bind(Place(layer=0, num_layers=1, out_features=6, axes=of.axes))
        return MoE(router, width, 2 * width, width, "gelu")

    with torch.device("meta"):
        large, small = at(4 * D), at(D)
    found = compare(large, small)
    routers = [(path, m) for path, m in large.named_modules() if isinstance(m, Router)]
    other = {f"{path}.{part}.weight" for path, m in routers for part in m.beside_logits}
    assert found.keys() == dict(large.named_parameters()).keys()
    for name, scaling in found.items():
        assert scaling.ratio == (4 if scaling.kind in ("hidden", "output", "router") else 1), name
        assert scaling.kind != "output" or not name.startswith("router.") or name in other, name
    own = r"experts\.(up|down)|shared\.(feed_forward\.)?(up|down)\.weight"
    hidden = [scaling.kind for name, scaling in found.items() if re.fullmatch(own, name)]
    assert hidden == ["hidden"] * 4
