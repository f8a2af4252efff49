"""The plan: the published table digit for digit, and counts that are the real model's."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ditmoe import DiTMoE
from ditmoe.config.compose import composed
from ditmoe.cost import Counts, Machine, Spread, count, sampling_memory, traffic, training_memory
from ditmoe.cost.communication import COPIES, GATHER, SCATTER, TOKENS
from ditmoe.cost.memory import moved_in_a_pass
from ditmoe.cost.plan import count_config, plan
from ditmoe.model import LowMemory
from ditmoe.moe import Context, Router, Routing, TokenChoice
from ditmoe.moe.router import project
from ditmoe.moe.routing import assign
from modalities.image import LatentTokens
from modalities.pointcloud import PointVoxelTokens
from tests.config.test_cli import call


def configuration(*words: str) -> dict:
    config = composed("plan", words)
    assert isinstance(config, dict)
    return config


# preset, experts: total M, active M, routed M, shared M, multiply-adds G, and without QK^T and AV
TABLE = [
    ("s", 8, "199.31", "71.91", "169.87", "10.62", "16.03", "15.43"),
    ("s", 16, "369.21", "71.94", "339.74", "10.62", "16.04", "15.44"),
    ("b", 8, "795.86", "286.25", "679.48", "42.47", "62.89", "61.68"),
    ("b", 16, "1475.41", "286.33", None, None, "62.91", None),
    ("l", 8, "2823.76", "1011.82", "2415.92", "150.99", "222.48", "219.26"),
    ("l", 16, "5239.88", "1012.02", None, None, "222.53", None),
    ("xl", 8, "4168.16", "1492.72", "3567.26", "222.95", "327.97", "323.74"),
    ("xl", 16, "7735.68", "1492.98", None, None, "328.03", None),
    ("g", 8, "8890.60", "3181.11", "7612.66", "475.79", "698.21", None),
    ("g", 16, "16503.72", "3181.56", "15225.32", "475.79", "698.33", "690.94"),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_the_published_table(row: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ditmoe.model.backbone.initialize", lambda model: None)  # shapes have no values
    model, experts, *expected = row
    counts, shape, classes = count_config(configuration(f"model={model}", f"router.num_experts={experts}"))
    assert (shape, classes, counts.tokens) == ((4, 32, 32), 1000, 256)
    millions = [counts.total, counts.active, counts.routed, counts.shared]
    billions = [counts.multiply_adds, counts.multiply_adds - counts.products]
    got = [f"{n / 1e6:.2f}" for n in millions] + [f"{n / 1e9:.2f}" for n in billions]
    assert [g for g, e in zip(got, expected, strict=True) if e] == [e for e in expected if e]


def test_what_the_experts_of_ec_dit_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse minus dense of its table at XL, 6.08 - 1.47 G: no text encoders in that."""
    monkeypatch.setattr("ditmoe.model.backbone.initialize", lambda model: None)
    words = ["experiment=ec_dit", "model.hidden_size=1152", "model.depth=28"]
    sparse, dense = (
        count_config(configuration(*words, f"router.num_experts={experts}"))[0] for experts in (32, 0)
    )
    assert f"{(sparse.total - dense.total) / 1e9:.2f}" == "4.61"


@pytest.mark.parametrize(("model", "total", "products"), [("s", "32.96", "6.06"), ("b", "130.51", "23.01")])
def test_dense_models(model: str, total: str, products: str) -> None:
    counts = count_config(configuration(f"model={model}", "router=dense"))[0]
    assert (f"{counts.total / 1e6:.2f}", f"{counts.multiply_adds / 1e9:.2f}") == (total, products)
    assert counts.active == counts.total
    assert counts.routed == counts.shared == 0


XL = ("model=xl", "model.qk_norm=false")
E16 = ("model.depth=30", "model.expert_ratio=2.5", "model.shared_ratio=2.5", "router.num_experts=16")


@pytest.mark.parametrize(
    ("words", "published"),
    [
        (("experiment=dsmoe",), {"active": "436"}),
        (("experiment=dsmoe", *XL, *E16, "router.top_k=2"), {"active": "965", "total": "2958"}),
    ],
)
def test_the_published_dsmoe_which_counts_in_units_of_two_to_the_twentieth(
    words: tuple[str, ...], published: dict[str, str]
) -> None:
    counts = count_config(configuration(*words))[0]
    assert {name: f"{getattr(counts, name) / 2**20:.0f}" for name in published} == published


@pytest.mark.parametrize("size", [("model=l",), XL])
def test_promoe_is_as_large_at_work_as_the_dense_model(size: tuple[str, ...]) -> None:
    dense = count_config(configuration(*size, "router=dense"))[0]
    counts = count_config(configuration("experiment=promoe", *size))[0]
    assert dense.active < counts.active < 1.001 * dense.active
    assert counts.routed == 13 * counts.shared  # twelve for prototypes, one for what is unconditional


def image(**options) -> tuple[Callable[[], DiTMoE], tuple[int, ...]]:
    options = {"router": partial(TokenChoice, num_experts=4, top_k=3), **options}
    return lambda: DiTMoE(LatentTokens(48, 4, 2, True), 5, 48, 3, 4, **options), (4, 12, 8)


def cloud(resolution: int) -> tuple[Callable[[], DiTMoE], tuple[int, ...]]:
    router = partial(TokenChoice, num_experts=4, top_k=2)
    return lambda: DiTMoE(PointVoxelTokens(48, resolution, 4), 3, 48, 2, 4, router=router), (50, 3)


MODELS = {
    "mixture": image(qk_norm=True),
    "some layers": image(moe_layers=[1], shared_ratio=0, dense_activation="gelu"),
    "gelu experts": image(activation="gelu"),
    "dense": image(router=None),
    "points": cloud(8),
    "points of a fine grid": cloud(16),
}


def real_multiply_adds(model: DiTMoE, shape: tuple[int, ...]) -> tuple[int, int]:
    """In all, and of the products of two activations within attention."""
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, *shape), torch.tensor([500.0]), torch.tensor([0]))
    products = sum(
        flops
        for name, operations in counter.get_flop_counts().items()
        for operation, flops in operations.items()
        if name.endswith("attention") and "bmm" in str(operation)
    )
    return counter.get_total_flops() // 2, products // 2


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_the_real_models(name: str) -> None:
    make, shape = MODELS[name]
    model, counts = make(), count(make, shape)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert counts.trainable == sum(sizes.values())
    assert counts.routed == sum(n for name, n in sizes.items() if ".experts." in name)
    assert counts.shared == sum(n for name, n in sizes.items() if ".shared." in name)
    assert counts.qk_norm == sum(n for name, n in sizes.items() if "_norm." in name)
    assert counts.positions == model.tokens.positions(model.tokens.layout(torch.randn(1, *shape))).numel()
    assert (counts.multiply_adds, counts.products) == real_multiply_adds(model, shape)


def test_all_but_attention_grows_with_the_tokens_alone() -> None:
    sizes = [(4, 32, 32), (4, 32, 64), (4, 64, 64)]  # 256 and 512 tokens, and 1024 in one fused kernel
    few, some, many = (count(image()[0], size) for size in sizes)
    rest = [counts.multiply_adds - counts.products for counts in (few, some, many)]
    assert rest[2] - rest[1] == 2 * (rest[1] - rest[0]) > 0


def test_active_is_what_a_token_meets() -> None:
    make, shape = MODELS["mixture"]
    counts = count(make, shape)
    assert counts.active == counts.total - counts.routed // 4  # top 3 of 4


@pytest.mark.parametrize("name", ["mixture", "dense", "points"])
def test_activations_are_what_autograd_keeps(name: str) -> None:
    make, shape = MODELS[name]
    model, batch = make(), 4
    counts = count(make, shape)
    kept: dict[int, torch.Tensor] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own and tensor.is_floating_point() and tensor.shape[-2:] != (counts.tokens,) * 2:
            kept[pointer] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randn(batch, *shape), torch.rand(batch), torch.zeros(batch, dtype=torch.int64))
    real = sum(t.untyped_storage().nbytes() // t.element_size() for t in kept.values())
    assert real == pytest.approx(batch * counts.activations, rel=0.1)


def test_nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ditmoe.model.backbone.initialize", lambda model: None)
    huge = partial(TokenChoice, num_experts=4096, top_k=2)
    make = lambda: DiTMoE(LatentTokens(4096), 1000, 4096, 2, 16, router=huge)  # noqa: E731
    assert count(make, (4, 16, 16)).trainable > 1e12


COUNTS = Counts(1000, 600, 100, 300, 0, 10, 16, 5, 50, 40, 4)


def test_a_mesh_divides() -> None:
    options = {"precision": "bf16", "batch_size": 3, "moments": 2, "ema": True}
    whole = {"weights": 4e3, "gradients": 4e3, "moments": 8e3, "EMA": 4e3}
    one = training_memory(COUNTS, Spread(), **options).parts
    assert one == whole | {"gathered": 2e3, "activations": 240}
    for mesh in (Spread(1, 4, 1), Spread(1, 2, 2), Spread(3, 1, 4), Spread(5, 1, 1)):
        parts = training_memory(COUNTS, mesh, **options).parts
        assert {name: parts[name] for name in whole} == {name: n / mesh.parts for name, n in whole.items()}
        assert parts["gathered"] == (2 * 2 + 2 + 4) * (400 + 600 / mesh.expert) / 4
    again = training_memory(replace(COUNTS, width=2), Spread(), recompute=True, **options)
    assert again.parts["activations"] == 3 * (4 * 16 * 2 + 10) * 2


def test_traffic_follows_the_mesh() -> None:
    counts = replace(COUNTS, width=8, assignments=32, routers=10, outside=90)
    options = {"precision": "bf16", "batch_size": 3}
    assert set(traffic(counts, Spread(), **options).values()) == {0}
    copies = traffic(counts, Spread(4, 1, 1), accumulate=2, **options)
    assert copies == {GATHER: 0, SCATTER: 0, COPIES: 2 * 4000 * 3 / 4, TOKENS: 0}
    parts = traffic(counts, Spread(1, 4, 1), accumulate=2, **options)
    assert parts == {GATHER: 4 * (2 * 900 + 4 * 100) * 3 / 4, SCATTER: 2 * 4000 * 3 / 4, COPIES: 0, TOKENS: 0}
    experts = traffic(counts, Spread(1, 1, 4), **options)
    assert experts[TOKENS] == 2 * 3 * 32 * (2 * 8 * 2 + 4) * 3 / 4
    assert experts[SCATTER] == 4 * 400 * 3 / 4  # experts stay where they are
    again = traffic(counts, Spread(1, 1, 4), recompute=True, **options)
    assert again[TOKENS] == 1.5 * experts[TOKENS]


def test_a_link_is_as_slow_as_its_slowest_part() -> None:
    machine = Machine(flops=1.0, per_node=8, inside=100.0, between=10.0)
    sent = dict.fromkeys((GATHER, SCATTER, COPIES, TOKENS), 1000.0)
    assert machine.seconds(sent, Spread(1, 2, 4)) == dict.fromkeys(sent, 10.0)
    seconds = machine.seconds(sent, Spread(2, 1, 8))
    assert (seconds[TOKENS], seconds[GATHER], seconds[COPIES]) == (10.0, 10.0, 100.0)
    assert machine.seconds(sent, Spread(1, 2, 8)) == dict.fromkeys(sent, 100.0) | {TOKENS: 10.0}


@pytest.mark.parametrize(
    "word", ["machine.flops=0", "machine.per_node=0", "machine.inside=-1", "machine.host=nan"]
)
def test_no_such_machine_even_if_one_gpu_needs_none_of_it(word: str) -> None:
    with pytest.raises(ValueError, match=f"{word.partition('=')[0]} must be"):
        plan(configuration(word))


def test_sampling_keeps_one_block() -> None:
    memory = sampling_memory(COUNTS, precision="fp32", batch_size=2, guidance=True)
    assert memory.parts == {"weights": 4e3, "activations": 4 * 40 * 4 / 4}


def test_less_memory_in_sampling_and_what_it_moves() -> None:
    """COUNTS with two layers of three experts, 600 numbers in all, 100 of a router and 50 outside of blocks."""
    counts, how = replace(COUNTS, moe_layers=2, experts=6, routers=100, outside=50), {"batch_size": 2}
    how |= {"precision": "fp32", "guidance": False}
    parts = sampling_memory(counts, keep=LowMemory("int8"), **how).parts
    assert parts == {"weights": 4 * 150 + 250, "experts": 600, "unpacked": 1200, "activations": 80}
    gib = 2**30
    keep = LowMemory("int8", "experts", 400 / gib)  # of two experts in each layer
    parts = sampling_memory(counts, keep=keep, **how).parts
    assert (parts["experts"], parts["unpacked"]) == (400, 400)
    assert moved_in_a_pass(counts, keep, "fp32") == 100 * 2 * (3 - 2 + 1)
    assert moved_in_a_pass(counts, LowMemory("int8", "experts", 600 / gib), "fp32") == 0
    assert moved_in_a_pass(replace(counts, experts=0, moe_layers=0), keep, "fp32") == 0


def test_the_command_prints_what_it_counts(capsys: pytest.CaptureFixture) -> None:
    print(
        *plan(configuration("modality=pointcloud", "model=debug", "num_classes=7", "modality.num_points=64"))
    )
    text = capsys.readouterr().out
    for words in (
        "8 experts, top 2; 64 tokens of a sample 64 x 3, 7 classes",
        "total",
        "minus attention",
        "EMA",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["memory.precision=fp8"], "memory.precision must be one of fp32, bf16, got 'fp8'"),
        (["memory.weights=int4"], "weights must be bf16 or int8, got 'int4'"),
        (["memory.weights=[]"], "weights must be bf16 or int8, got []"),
        (["mesh.shard=0"], "mesh.shard must be a whole number from 1 on, got 0"),
    ],
)
def test_one_line_for_a_mistake(tmp_path: Path, words: list[str], expected: str) -> None:
    done = call("plan", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("latents.size", []),
        ("latents.size", [4096]),
        ("latents.size", [8, 8, 8]),
        ("latents.channels", None),
        ("latents.channels", -1),
        ("memory.precision", []),
        *(
            (f"memory.{name}", None)
            for name in ("batch_size", "moments", "sampling_batch_size", "accumulate")
        ),
    ],
)
def test_an_option_that_cannot_be_is_named(option: str, value: Any) -> None:
    config = composed("plan", ["model=debug"])
    section, name = option.split(".")
    config[section][name] = value
    with pytest.raises(ValueError, match=rf"^[^\n]*{name} must [^\n]*$"):
        plan(config)


class Mine(Router):
    """A person's own: whoever likes an expert more than the average takes it."""

    def __init__(self, hidden_size: int, careless: bool = False) -> None:
        super().__init__()
        self.num_experts, self.active, self.careless = 4, 1.5, careless
        self.weight = torch.nn.Parameter(torch.empty(4, hidden_size))

    def forward(self, x: torch.Tensor, context: Context) -> Routing:
        scores = project(x.flatten(0, 1), self.weight)
        if self.careless and scores.sum() > 0:
            scores = -scores
        return assign(scores > scores.mean(), scores, scores)


def test_a_router_of_ones_own_counts_without_being_known() -> None:
    make, shape = image(router=Mine)
    counts, like = count(make, shape), count(*image(router=partial(TokenChoice, num_experts=4, top_k=1)))
    assert counts.assignments == 1.5 * like.assignments == 3 * 24 * 1.5
    row = 2 * 48 * 4 * 48 + 48 * 4 * 48  # gate, up and down of one expert
    assert counts.multiply_adds - like.multiply_adds == 3 * 24 * 0.5 * row
    with pytest.raises(ValueError, match=r"must check x\.is_meta before it reads a value"):
        count(*image(router=partial(Mine, careless=True)))


def test_nobody_else_is_touched() -> None:
    """Models that train in other threads neither see a count nor are seen by it."""
    make, shape = MODELS["mixture"]
    x = torch.randn(2, *shape)

    def trained(until: Callable[[int], bool]) -> list[float]:
        torch.manual_seed(0)
        net, losses = make(), []
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        while until(len(losses)):
            loss = net(x, torch.tensor([3.0, 500.0]), torch.tensor([0, 1]))[0].add(1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    alone, counting, started = count(make, shape), Event(), Event()

    def meanwhile(step: int) -> bool:
        if step == 1:
            started.set()
        return step < 3 or not counting.is_set()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(trained, meanwhile)
        started.wait(60)
        try:
            again = [count(make, shape) for _ in range(3)]
        finally:
            counting.set()
        losses = other.result(60)
    assert again == [alone] * 3
    assert losses == trained(lambda step: step < len(losses))
    with torch.inference_mode():
        assert count(make, shape) == alone
