"""Quantised weights and offloaded experts: the same numbers where nothing is rounded, bounded errors where it is, and
counts of what happened."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ditmoe.config.compose import composed
from ditmoe.config.restore import restore
from ditmoe.cost.plan import plan
from ditmoe.inference import sample_checkpoint
from ditmoe.model import DiTMoE, LowMemory
from ditmoe.moe import Experts, Traffic
from ditmoe.moe.expert_memory import OffloadedExperts
from ditmoe.nn.quantized import Quantized, QuantizedLinear
from tests.model.test_times import ROUTERS, everywhere_some, of_router

GIB = 2**30


def shrink(model: DiTMoE, how: LowMemory) -> Traffic | None:
    """Keep the weights of a model in memory otherwise, in place, as `restore` keeps those of a file."""
    weights = {name: value.detach() for name, value in model.named_parameters()}
    return how.fill(how.emptied(model), weights.__getitem__, model.embed.weight.device)


def size_of(model: DiTMoE) -> int:
    """Bytes of its parameters and buffers, without offloaded experts."""
    return sum(x.nbytes for x in (*model.parameters(), *model.buffers()))


def predicted(model) -> torch.Tensor:
    x = torch.randn(3, 3, 4, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(x, torch.tensor([100.0, 400.0, 800.0]), torch.tensor([0, 1, 3]))[0]


def stores(model) -> list[OffloadedExperts]:
    return [m for m in model.modules() if isinstance(m, OffloadedExperts)]


@pytest.mark.parametrize("name", [n for n in ROUTERS if n != "dense"])
def test_offloading_changes_no_bit_with_any_router(name: str) -> None:
    """Neither with room for one expert of a layer, nor for all; held and moved are what the counts say."""
    model = of_router(name).eval()
    whole = predicted(model)
    size = sum(m.up[0].nbytes + m.down[0].nbytes for m in [model.mixtures[0].experts])
    layers = len(model.mixtures)
    traffic = shrink(model, LowMemory(offload="experts", expert_cache=1.5 * size * layers / GIB))
    assert torch.equal(predicted(model), whole)
    assert traffic.most == layers * size == sum(len(s.held) * s.size for s in stores(model))
    assert traffic.moved == traffic.fetched * size
    assert torch.equal(predicted(model), whole)
    for store in stores(model):
        store.capacity = len(store.host)
    for _ in range(2):
        before = traffic.fetched
        assert torch.equal(predicted(model), whole)
    assert traffic.fetched == before  # all that are chosen are there
    assert traffic.held == sum(len(s.held) * s.size for s in stores(model))


def fetched(capacity: int, passes: list[list[int]]) -> list[list[int]]:
    """Which experts each pass fetches."""
    weight = Quantized(torch.zeros(6, 2, 2))
    store = OffloadedExperts(weight, weight, 0, Traffic())
    store.capacity, found = capacity, []
    for wanted in passes:
        store.chosen([int(e in wanted) for e in range(6)], torch.device("cpu"))
        before = dict(store.held)
        missing = []
        for e in wanted:
            if e not in store.held:
                missing.append(e)
            store.fetch(e)
            assert len(store.held) <= capacity
        found.append(missing)
        assert len(before) <= capacity
    return found


def test_who_makes_room() -> None:
    assert fetched(2, [[0, 1], [2], [1, 2], [0]]) == [[0, 1], [2], [], [0]]  # the one unused for longest
    every = list(range(6))
    # At most E - C + 1 in each pass, where one that forgets the oldest would fetch all.
    for capacity in range(1, 7):
        assert all(len(missing) <= 7 - capacity for missing in fetched(capacity, [every] * 6)[1:])
    assert fetched(3, [[3, 4, 5], [0, 3, 4, 5]]) == [[3, 4, 5], [0, 5]]  # of those whose turn comes, the last


def test_no_weight_is_off_by_more_than_half_a_step() -> None:
    weight = (
        torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 5)[:, None]
    )
    weight[1, 2] = 0
    quantized = Quantized.of(weight, "int8")
    assert quantized.values.dtype == torch.int8
    assert ((quantized.to(torch.float32) - weight).abs() <= quantized.scale / 2 * (1 + 1e-5)).all()
    assert (quantized.values.abs().amax(-1)[weight.any(-1)] == 127).all()
    assert torch.equal(
        torch.stack([p.to(torch.float32) for p in quantized.unbind()]), quantized.to(torch.float32)
    )
    assert quantized.nbytes == 3 * 5 * 7 + 3 * 5 * 4
    half = weight.bfloat16().float()
    assert torch.equal(Quantized.of(half, "bf16").to(torch.float32), half)


def test_a_quantized_layer_is_the_layer_of_its_weight() -> None:
    linear, x = torch.nn.Linear(6, 4), torch.randn(2, 3, 6)
    quantized = QuantizedLinear(linear.bias)
    quantized.set_weight(Quantized.of(linear.weight.detach(), "int8"))
    assert torch.equal(quantized(x), F.linear(x, quantized.weight.to(torch.float32), linear.bias))
    assert (quantized(x) - linear(x)).abs().max() < 0.02
    with torch.autocast("cpu", torch.bfloat16):
        assert quantized(x).dtype == torch.bfloat16


@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_quantized_models_are_near_and_small(form: str) -> None:
    model = everywhere_some(of_router("token_choice")).eval()
    whole, size = predicted(model), size_of(model)
    inside = sum(p.nbytes for p in model.blocks.parameters() if p.ndim > 1) - sum(
        p.nbytes for r in model.routers for p in r.parameters()
    )
    shrink(model, LowMemory(weights=form))
    saved = inside / 2 if form == "bf16" else 0.75 * inside
    assert size - size_of(model) == pytest.approx(saved, rel=0.1)  # scales are of few inputs here
    error = (predicted(model) - whole).norm() / whole.norm()
    assert 0 < error < 0.05


def test_a_checkpoint_opens_quantized_and_offloaded_as_a_model_shrinks(tmp_path: Path) -> None:
    how = LowMemory("int8", "experts", 1e-4)
    opened, plain = restore("starter/image", memory=how), restore("starter/image").model
    shrink(plain, LowMemory("int8"))
    x = torch.randn(2, *opened.modality.sample_shape)
    with torch.no_grad():
        both = [
            model(x, torch.tensor([100.0, 900.0]), torch.tensor([1, 2]))[0] for model in (opened.model, plain)
        ]
    assert torch.equal(*both)
    assert opened.traffic.held <= opened.traffic.room
    files = [
        sample_checkpoint("starter/image", num=2, steps=2, out=tmp_path / f"{i}.npz", **more)[1]
        for i, more in enumerate(({}, {"offload": "experts", "expert_cache": 1e-4}))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"weights": "int4"}, "weights must be bf16 or int8, got 'int4'"),
        ({"offload": "all"}, "offload must be experts, got 'all'"),
        ({"expert_cache": 0}, "expert_cache must be"),
        ({"expert_cache": 2.0}, "expert_cache is said of experts on the host: it needs offload=experts"),
    ],
)
def test_what_is_none_of_these_is_one_line(options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        LowMemory(**options)


def test_a_cache_without_room_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"expert_cache must have room for an expert of each layer, .* GiB, got 1e-09"
    ):
        restore("starter/image", memory=LowMemory(offload="experts", expert_cache=1e-9))


@pytest.mark.parametrize("form", [None, "bf16", "int8"])
def test_a_plan_refuses_the_cache_that_sampling_refuses(form: str | None) -> None:
    """In the same line, and not the next larger one, which has room for one expert of each layer to the byte."""
    restored = restore("starter/image")
    config = composed("plan", ["memory.precision=fp32"]) | {
        k: restored.config[k] for k in ("model", "router")
    }
    layers = [module for module in restored.model.modules() if isinstance(module, Experts)]
    each = sum(Quantized.of(w[0].detach(), form).nbytes for w in (layers[0].up, layers[0].down))
    least = len(layers) * each / GIB
    for cache, refused in ((least, False), (least * (1 - 1e-6), True)):
        memory = {"weights": form, "offload": "experts", "expert_cache": cache}
        said = []
        for does in (lambda m=memory: restore("starter/image", memory=LowMemory(*m.values())),
                     lambda m=memory: plan(config | {"memory": config["memory"] | m})):  # fmt: skip
            with pytest.raises(ValueError) if refused else nullcontext() as error:  # noqa: PT011
                does()
            said.append(str(error.value) if refused else "")
        assert said[0] == said[1]
        assert refused == said[0].startswith("expert_cache must have room for an expert of each layer, ")
