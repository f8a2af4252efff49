"""What the tests of the mixture share: small layers of every router, and its definition as a loop.

A subject of the laws (`tests/moe/laws.py`) is every YAML of `configs/router/`, of the examples and of a folder that a
test names, made tiny by one rule; and the variants below, whose options no YAML has.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ditmoe.conditioning import Embedded
from ditmoe.config import build
from ditmoe.moe import (  # fmt: skip
    Base,
    BatchPool,
    Context,
    DiffMoE,
    ExpertChoice,
    ExpertRace,
    MixtureOfTokens,
    MoE,
    Place,
    ProMoE,
    ReLU,
    Router,
    Routing,
    Sinkhorn,
    Soft,
    TimeAware,
    TimestepExperts,
    TokenChoice,
)
from ditmoe.moe.time_aware import GridConvolution
from ditmoe.nn import Layout, normalize
from ditmoe.nn.layers import activate
from tests import subjects

B, N, D, E = 3, 12, 16, 4
GRIDS = {1: (12,), 2: (3, 4), 3: (3, 2, 2)}
token_choice = partial(TokenChoice, num_experts=E, top_k=2)


@dataclass(frozen=True)
class Subject:
    """A router: what makes it for a hidden size, and the axes of the grid that its tokens lie on."""

    make: Callable[..., Router]
    axes: int = 2


VARIANTS = {
    "top 1": partial(TokenChoice, num_experts=E, top_k=1),
    "all experts": partial(TokenChoice, num_experts=E, top_k=E),
    "renormalized": partial(token_choice, renormalize=True, route_scale=2.5, z_loss=0.1),
    "sigmoid and bias": partial(token_choice, score="sigmoid", bias_rate=0.01, renormalize=True),
    "capacity": partial(token_choice, capacity=0.75),
    "capacity in order": partial(token_choice, capacity=0.75, priority=False),
    "small capacity": partial(ExpertChoice, num_experts=E, capacity=1.5),
    "decoupled": partial(ExpertChoice, num_experts=E, capacity=2.0, decoupled=True, renormalize=True),
    "capacity of time and step": partial(
        ExpertChoice,
        num_experts=E,
        capacity=1.5,
        score="sigmoid",
        by_time=0.7,
        sparsify=[0, 4],
        renormalize=True,
    ),
    "segments": partial(TimestepExperts, boundaries=[300, 700]),
    "segments, token_choice": partial(TimestepExperts, boundaries=[500], router=token_choice),
    "segments, expert_choice": partial(
        TimestepExperts, boundaries=[500], router=partial(ExpertChoice, num_experts=E, capacity=2.0)
    ),
    "segments, race": partial(
        TimestepExperts, boundaries=[500], router=partial(ExpertRace, num_experts=E, top_k=2)
    ),
    "time_aware 1": partial(TimeAware, num_experts=E, top_k=2, rank=4),
    "time_aware 3": partial(TimeAware, num_experts=E, top_k=2, rank=4, kernel=5),
}
AXES = {"time_aware 1": 1, "time_aware 3": 3}


def tiny(section: Any) -> Any:
    """A router's section with E experts: no whole number above that, and odd ones stay odd."""
    if isinstance(section, dict):
        return {key: tiny(value) for key, value in section.items()}
    return min(section, E - section % 2) if type(section) is int else section


@cache
def found(*folders: Path) -> dict[str, Subject]:
    """The router of every YAML of these folders, by default of all that there are (`tests/subjects.py`)."""
    files = subjects.find("router", *folders).items()
    made = {name: build.make_router(tiny(subjects.section("router", name, folder))) for name, folder in files}
    return {name: Subject(make) for name, make in made.items() if make}  # but for the one of a dense model


ROUTERS = found() | {name: Subject(make, AXES.get(name, 2)) for name, make in VARIANTS.items()}


def subject(of: str | Subject) -> Subject:
    return ROUTERS[of] if isinstance(of, str) else of


def layer(of: str | Subject, activation: str = "swiglu", shared: int = 8) -> MoE:
    """A layer with weights that are nowhere zero."""
    torch.manual_seed(0)
    router = subject(of).make(hidden_size=D)
    router.bind(Place(layer=0, num_layers=1, out_features=6, axes=subject(of).axes))
    moe = MoE(router, D, 24, shared, activation)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(std=0.3)
    return moe


def batch(of: str | Subject = "token_choice", size: int = B, seed: int = 1) -> tuple[torch.Tensor, Context]:
    """Tokens and what is known beside them; the samples' times lie in different segments."""
    g = torch.Generator().manual_seed(seed)
    x, unmodulated = (torch.randn(size, N, D, generator=g) for _ in range(2))
    time, c = (torch.randn(size, D, generator=g) for _ in range(2))
    t = torch.linspace(100, 900, size)
    layout = Layout.even(GRIDS[subject(of).axes], size, x.device)
    return x, Context(t, time, c, layout, unmodulated, asked(size))


def asked(size: int) -> Embedded:
    """What some samples ask for; every third one is unconditional."""
    return Embedded(torch.zeros(size, D), torch.arange(size) % 3 == 1)


def one(x: torch.Tensor, context: Context, i: int) -> tuple[torch.Tensor, Context]:
    """A sample by itself."""
    here = slice(i, i + 1)
    own = (v[here] for v in (context.t, context.time, context.c))
    null = context.asked.take(torch.tensor([i]))
    return x[here], Context(*own, context.layout.take([i]), context.unmodulated[here], null)


def expert(moe: MoE, e: int, h: torch.Tensor) -> torch.Tensor:
    """One expert on one vector."""
    w = moe.experts
    up = w.up[e] @ h + (0 if w.up_bias is None else w.up_bias[e])
    return w.down[e] @ activate(up, w.activation) + (0 if w.down_bias is None else w.down_bias[e])


def loop(moe: MoE, x: torch.Tensor, context: Context) -> torch.Tensor:
    """The definition: shared experts, plus each assignment's expert times its weight, token by token.

    A router without equations here says itself what it assigns, and a layer of experts that are not plain what each of
    them does.
    """
    out = torch.zeros_like(x) if moe.shared is None else moe.through_shared(x, context)
    if isinstance(moe.branch, GridConvolution):
        out = out + convolution(moe, x, context)
    elif moe.branch is not None:
        out = out + moe.branch(x, context)
    if type(moe.router) is Soft:
        return out + soft(moe, x)
    if type(moe.router) is MixtureOfTokens:
        return out + mixture_of_tokens(moe, x)
    if not written(moe.router):
        return one_by_one(moe, x, context, out)
    for b, n, e, weight in assignments(moe.router, x, context, moe.training):
        h = x[b, n]
        if isinstance(moe.router, DiffMoE):
            seen = torch.relu(moe.experts.reduce[e] @ context.c[b])
            shift, scale, gate = (moe.experts.expand[e] @ seen + moe.experts.expand_bias[e]).split(D)
            out[b, n] += weight * (h + gate * expert(moe, e, (1 + scale) * normalize(h) + shift))
        elif isinstance(moe.router, TimeAware):
            modulation = moe.experts.expand[e] @ moe.experts.reduce[e] @ F.silu(context.c[b])
            shift, scale, gate = modulation.split(D)
            out[b, n] += weight * (h + gate * expert(moe, e, (1 + scale) * h + shift))
        else:
            out[b, n] += weight * expert(moe, e, h)
    return out


def written(router: Router) -> bool:
    """Whether its equations stand below: not those of a class that is unknown here, even if it inherits."""
    known = (
        TokenChoice,
        Sinkhorn,
        Base,
        TimeAware,
        DiffMoE,
        ProMoE,
        ExpertChoice,
        BatchPool,
        ExpertRace,
        ReLU,
    )
    return all(type(r) in (TimestepExperts, *known) for r in router.modules() if isinstance(r, Router))


def one_by_one(moe: MoE, x: torch.Tensor, context: Context, out: torch.Tensor) -> torch.Tensor:
    """Each assignment of a routing by itself through its expert, which multiplies by its weight."""
    routing, out = moe.router(x, context), out.flatten(0, 1)
    if type(routing).dispatch is not Routing.dispatch:
        return moe(x, context)[0]  # of mixtures of tokens, which no list of assignments defines
    for i in range(len(routing.token)):
        alone = {name: getattr(routing, name)[i : i + 1] for name in ("token", "expert", "weight")}
        rows = replace(routing, **alone).dispatch(x, context.layout)
        out = out.index_add(0, alone["token"], moe.experts(rows, context.c))
    return out.view_as(x)


def soft(moe: MoE, x: torch.Tensor) -> torch.Tensor:
    r, out = moe.router, torch.zeros_like(x)
    for b in range(len(x)):
        unit, phi = (v / v.norm(dim=-1, keepdim=True) for v in (x[b], r.phi))
        logits = r.scale * unit @ phi.T
        for s in range(r.num_experts * r.slots):
            slot = sum(torch.softmax(logits[:, s], 0)[n] * x[b, n] for n in range(N))
            y = expert(moe, s // r.slots, slot)
            for n in range(N):
                out[b, n] += torch.softmax(logits[n], 0)[s] * y
    return out


def mixture_of_tokens(moe: MoE, x: torch.Tensor) -> torch.Tensor:
    r, out = moe.router, torch.zeros_like(x)
    for b in range(len(x)):
        for first in range(0, N, r.group):
            tokens = x[b, first : first + r.group]
            share = torch.softmax(tokens @ r.weight.T / r.temperature, 0)
            for e in range(r.num_experts):
                y = expert(moe, e, sum(w * h for w, h in zip(share[:, e], tokens, strict=True)))
                for n, w in enumerate(share[:, e]):
                    out[b, first + n] += w * y
    return out


def convolution(moe: MoE, x: torch.Tensor, context: Context) -> torch.Tensor:
    """Each token plus its neighbours on the grid, each by the weight of where it lies."""
    grid, weight = context.layout.grids[0], moe.branch.weight[:, 0]
    half = weight.shape[-1] // 2
    places = [tuple(p) for p in torch.cartesian_prod(*map(torch.arange, grid)).view(-1, len(grid)).tolist()]
    out = torch.zeros_like(x)
    for n, here in enumerate(places):
        for m, there in enumerate(places):
            step = [q - p + half for p, q in zip(here, there, strict=True)]
            if all(0 <= s < weight.shape[-1] for s in step):
                out[:, n] += weight[(slice(None), *step)] * x[:, m]
    return out


def assignments(r: Router, x: torch.Tensor, context: Context, training: bool) -> list:
    """(sample, token, expert, weight) by the equations of the papers, one token at a time."""
    if isinstance(r, TimestepExperts):
        return _timestep(r, x, context, training)
    if isinstance(r, BatchPool | ExpertRace):
        return _pooled(r, x, training)
    found = []
    for b in range(len(x)):
        if isinstance(r, ProMoE):
            found += [(b, *rest) for rest in _promoe(r, x[b], bool(context.asked.null[b]))]
            continue
        of_sample = context.unmodulated[b], context.time[b], context.t[b].item()
        found += [(b, *rest) for rest in _of_sample(r, x[b], *of_sample)]
    return found


def _timestep(r: TimestepExperts, x: torch.Tensor, context: Context, training: bool) -> list:
    segment = [sum(t >= edge for edge in r.boundaries) for t in context.t.tolist()]
    if not r.routers:
        return [(b, n, segment[b], 1.0) for b in range(len(x)) for n in range(N)]
    found = []
    for s, router in enumerate(r.routers):
        own = [b for b in range(len(x)) if segment[b] == s]
        layout = context.layout.take(own)
        values = context.t[own], context.time[own], context.c[own]
        null = context.asked.take(torch.tensor(own, dtype=torch.long))
        inside = Context(*values, layout, context.unmodulated[own], null)
        found += [(own[b], n, E * s + e, w) for b, n, e, w in assignments(router, x[own], inside, training)]
    return found


def _pooled(r: Router, x: torch.Tensor, training: bool) -> list:
    h = x.reshape(-1, D)
    if isinstance(r, BatchPool):
        value = torch.softmax(h @ r.weight.T, -1)
        rank = value if training else torch.sigmoid(r.second(F.silu(r.first(h))))
    else:
        value = rank = r.second(F.gelu(r.first(h)))
    pairs = [(n, e) for n in range(len(h)) for e in range(E)]
    if not training:
        bound = r.threshold.value.expand(E)
        taken = [(n, e) for n, e in pairs if rank[n, e] >= bound[e]]
    elif isinstance(r, BatchPool):
        room = round(r.active * len(h) / E)
        taken = [(n, e) for e in range(E) for n in sorted(range(len(h)), key=lambda n: -rank[n, e])[:room]]
    else:
        taken = sorted(pairs, key=lambda p: -rank[p])[: r.top_k * len(h)]
    return [(n // N, n % N, e, value[n, e]) for n, e in taken]


def _promoe(r: ProMoE, h: torch.Tensor, null: bool) -> list:
    if null:
        return [(n, r.num_experts - 1, 1.0) for n in range(N)]
    alike = [[F.cosine_similarity(token, p, dim=0) for p in r.weight] for token in h]
    return [(n, e := max(range(len(own)), key=lambda e: own[e]), own[e]) for n, own in enumerate(alike)]


def _of_sample(r: Router, h: torch.Tensor, unmodulated: torch.Tensor, time: torch.Tensor, t: float) -> list:
    if isinstance(r, ReLU):
        return [(n, e, w) for n in range(N) for e in range(E) if (w := r.weight[e] @ h[n] + r.bias[e]) > 0]
    if isinstance(r, ExpertChoice):
        return _expert_choice(r, h, unmodulated, time, t)
    logits = h @ r.weight.T
    scores = torch.sigmoid(logits) if r.score == "sigmoid" else torch.softmax(logits, -1)
    if isinstance(r, Sinkhorn | Base):
        chosen = r.choose(logits, scores, Layout.even((N,), 1, h.device)).tolist()  # has tests of its own
    else:
        ranked = scores + (r.bias if r.bias_rate else 0)
        chosen = [sorted(range(E), key=lambda e: -ranked[n, e].item())[: r.top_k] for n in range(N)]
    rows = []
    for n, experts in enumerate(chosen):
        total = sum(scores[n, e] for e in experts) if r.renormalize else 1
        rows += [(k, n, e, r.route_scale * scores[n, e] / total) for k, e in enumerate(experts)]
    if r.capacity is None:
        return [row[1:] for row in rows]
    best = {n: -scores[n].max().item() if r.priority else n for n in range(N)}
    room, used, kept = ceil(r.capacity * r.top_k * N / E), [0] * E, []
    for _, n, e, weight in sorted(rows, key=lambda row: (row[0], best[row[1]])):
        used[e] += 1
        if used[e] <= room:
            kept.append((n, e, weight))
    return kept


def _expert_choice(
    r: ExpertChoice, h: torch.Tensor, unmodulated: torch.Tensor, time: torch.Tensor, t: float
) -> list:
    time = time / time.square().mean().sqrt()
    logits = unmodulated @ r.weight.T + r.time_weight @ time if r.decoupled else h @ r.weight.T
    scores = torch.sigmoid(logits) if r.score == "sigmoid" else torch.softmax(logits, -1)
    capacity = r.active
    if r.sparsified:
        capacity = E + (r.active - E) * r.sparsified.step.item() / r.sparsified.last
    room = ceil(capacity * (1 + r.by_time * (1 - t / 500)) * N / E)
    taken = [(n, e) for e in range(E) for n in sorted(range(N), key=lambda n: -scores[n, e])[:room]]
    total = {n: sum(scores[m, e] for m, e in taken if m == n) if r.renormalize else 1 for n in range(N)}
    return [(n, e, r.route_scale * scores[n, e] / total[n]) for n, e in taken]
