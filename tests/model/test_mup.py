"""muP: kinds of weights from shapes, what follows from them, and activations that do not grow with the width."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from ditmoe.config.restore import restore
from ditmoe.model import DiTMoE, set_base
from ditmoe.model.mup import Scaling, compare
from ditmoe.moe import Experts, TokenChoice
from ditmoe.nn import Attention, LoRA, lora
from ditmoe.parallel import Mesh
from ditmoe.pretrained.start import start_from
from ditmoe.training import ParameterGroups
from modalities.image import LatentTokens
from tests.conditioning.numbers import Numbers
from tests.model.test_initialization import model
from tests.training.test_trainer import config, same, trainer


def adam(built: nn.Module, groups: ParameterGroups | None = None, **options: float) -> tuple:
    make = partial(torch.optim.AdamW, lr=1.0, weight_decay=0.1, eps=1e-8, **options)
    return (groups or ParameterGroups()).optimizer(make, built, Mesh())


def test_at_its_own_base_width_a_model_is_the_standard_one_to_the_bit(tmp_path: Path) -> None:
    states = []
    for name, words in {"standard": [], "mup": ["model.base_width=48"]}.items():
        run, _ = trainer(tmp_path / name, "trainer.steps=3", "trainer.save_every=0", *words)
        states.append([run.model.state_dict(), run.optimizer.state_dict()["param_groups"]])
        states[-1][0] = {key: value.clone() for key, value in states[-1][0].items()}
        for _ in range(3):
            assert run._train_step()
            run.step += 1
        states[-1].append(run.model.state_dict())
    assert run.model.widths.ratio == 1
    assert same(*states)


class Toy(nn.Module):
    """One weight of each kind, at a width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, width), nn.Linear(width, 3)
        self.within, self.aside = nn.Linear(width, 3 * width), nn.Linear(3, 4)
        self.table, self.norm = nn.Embedding(5, width), nn.LayerNorm(width)
        self.convolution = nn.Conv2d(4, width, 3)
        self.upwards = nn.ConvTranspose1d(width, 4, 3)
        self.experts = Experts(2, width, 2 * width, "gelu")
        self.narrow = Experts(2, width, 5, "swiglu")
        self.router = TokenChoice(width, 4, 1)


KINDS = {
    "enter.weight": "input", "enter.bias": "vector", "leave.weight": "output", "leave.bias": "fixed",
    "within.weight": "hidden", "within.bias": "vector", "aside.weight": "fixed", "aside.bias": "fixed",
    "table.weight": "vector", "norm.weight": "vector", "norm.bias": "vector",
    "convolution.weight": "input", "convolution.bias": "vector",
    "upwards.weight": "output", "upwards.bias": "fixed",
    "experts.up": "hidden", "experts.down": "hidden", "experts.up_bias": "vector", "experts.down_bias": "vector",
    "narrow.up": "output", "narrow.down": "input", "router.weight": "router",
}  # fmt: skip


def test_kinds_come_from_the_axes_that_grow() -> None:
    found = compare(Toy(24), Toy(8))
    assert {name: scaling.kind for name, scaling in found.items()} == KINDS
    for scaling in found.values():
        assert scaling.ratio == (3 if scaling.kind in ("hidden", "output", "router") else 1)


def test_a_masked_model_is_covered_too() -> None:
    with torch.device("meta"):
        built = model("model=masked", "model.depth=1", "model.moe_layers=[0]", "model.base_width=64")
    found = built.widths.scalings
    assert found.keys() == dict(built.named_parameters()).keys()
    assert found["mask_token"].kind == "vector"
    assert found["bridge.linear.weight"].kind == found["blocks.2.attention.qkv.weight"].kind == "hidden"


@pytest.mark.parametrize("kept", [False, True])
def test_values_learning_rates_and_weight_decay_are_those_of_the_table(kept: bool) -> None:
    m, words = 4, ["router=time_aware", "model.num_heads=4"]
    small = model(*words, "model.hidden_size=48")
    large = model(
        *words, "model.hidden_size=192", "model.base_width=48", "model.base_heads=4",
        f"model.keep_router_logits={kept}",
    )  # fmt: skip
    optimizer, rates = adam(large, ParameterGroups(rates={"router": 0.5}, no_decay=["bias"]))
    lies = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    layer = "blocks.0.feed_forward"
    table = {  # name -> powers of m: of the initial deviation, and of learning rate and 1 / weight decay
        "embed.weight": (0, 0), "timestep.first.weight": (0, 0), "timestep.second.weight": (-0.5, -1),
        "conditioning.table.weight": (0, 0), "blocks.0.attention.qkv.weight": (-0.5, -1),
        "blocks.1.attention.out.weight": (-0.5, -1), f"{layer}.shared.up.weight": (-0.5, -1),
        f"{layer}.experts.up": (-0.5, -1), f"{layer}.experts.down": (-0.5, -1), f"{layer}.experts.reduce": (-1, -1),
        f"{layer}.experts.expand": (0, 0), f"{layer}.branch.weight": (0, 0), "final.linear.weight": (-1, -1),
        f"{layer}.router.weight": (-0.5 if kept else -1, -1), "blocks.0.modulation.linear.weight": (-0.5, -1),
        "embed.bias": (0, 0), "tokens.head.modulation.weight": (-1, -1), "tokens.head.hidden.weight": (0, 0),
    }  # fmt: skip
    for name, (deviation, rate) in table.items():
        own, base = large.get_parameter(name), small.get_parameter(name)
        group = lies[id(own)]
        assert own.std().item() == pytest.approx(base.std().item() * m**deviation, rel=0.15), name
        assert rates[group] == m**rate * (0.5 if "router" in name else 1), name
        decay = 0 if name.endswith("bias") else 0.1 * m**-rate
        assert optimizer.param_groups[group]["weight_decay"] == pytest.approx(decay), name
    assert all(group["eps"] == 1e-8 / m for group in optimizer.param_groups)
    assert [block.attention.gain for block in large.blocks] == [0.5, 0.5]  # heads are 4 times as large


def test_only_logits_keep_their_size_and_not_what_else_a_router_predicts() -> None:
    m, words = 4, ["router=race", "model.num_heads=4"]
    small = model(*words, "model.hidden_size=48")
    large = model(
        *words,
        "model.hidden_size=192",
        "model.base_width=48",
        "model.base_heads=4",
        "model.keep_router_logits=true",
    )
    for name, kind, power in (
        ("second", "router", -0.5),
        ("aux_head", "output", -1),
        ("first", "hidden", -0.5),
    ):
        name = f"blocks.0.feed_forward.router.{name}.weight"
        assert large.widths.scalings[name] == Scaling(kind, m)
        own, base = (of.get_parameter(name).std().item() for of in (large, small))
        assert own == pytest.approx(base * m**power, rel=0.15), name
    without = model(*words, "router.regularization=0", "model.base_width=24", "model.base_heads=4")
    assert not any("aux_head" in name for name in without.widths.scalings)


def test_loras_a_learns_as_its_weight_and_b_as_a_vector() -> None:
    """A sums over the width, B over the rank, which stays (arXiv 2402.12354)."""
    built = model("model.hidden_size=192", "model.base_width=48", "model.base_heads=4")
    LoRA(rank=2).attach(built)
    optimizer, rates = adam(built)
    group = {id(p): i for i, own in enumerate(optimizer.param_groups) for p in own["params"]}
    lows = [low for name, _, _, each in lora.adapted(built) for low in each if "attention" in name]
    assert {rates[group[id(low.lora_A)]] / rates[group[id(low.lora_B)]] for low in lows} == {48 / 192}


@torch.no_grad()
def test_the_gain_is_that_of_the_logits() -> None:
    attention, x = Attention(16, 2), torch.randn(2, 5, 16)
    attention.gain = 0.0  # each token attends to all alike
    v = attention.qkv(x)[..., 32:].mean(1, keepdim=True)
    assert torch.allclose(attention(x), attention.out(v).expand(-1, 5, -1), atol=1e-6)
    softer, sharper = Attention(16, 2), Attention(16, 2)
    sharper.load_state_dict(softer.state_dict())
    sharper.qkv.weight[:16] *= 3
    sharper.qkv.bias[:16] *= 3
    softer.gain = 3.0
    assert torch.allclose(softer(x), sharper(x), atol=1e-5)


def test_a_checkpoint_remembers_the_base(tmp_path: Path) -> None:
    words = ["model.base_width=24", "model.base_heads=4", "trainer.steps=1"]
    run, _ = trainer(tmp_path, *words)
    run.run()
    restored = restore(tmp_path).model
    assert restored.blocks[0].attention.gain == run.ema.model.blocks[0].attention.gain == 0.5**0.5
    assert restored.widths == run.model.widths
    with pytest.raises(ValueError, match=r"must give the attention scale of .*, 0\.7071 .* got 1$"):
        start_from(str(tmp_path), model(), config()["model"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["base_width=0"], r"model\.base_width must be between 1 and 384, got 0"),
        (["base_width=1e9"], r"model\.base_width must be a whole number"),
        (["base_width=100000"], r"model\.base_width must be between 1 and 384, got 100000"),
        (["base_width=20"], r"model\.base_width must be a multiple of 12, the size of a head .* got 20"),
        (
            ["base_width=20", "base_heads=3"],
            r"model\.base_width must be a multiple of base_heads, got 20 and 3",
        ),
        (["keep_router_logits=true"], r"model\.keep_router_logits must come with a model\.base_width"),
        (["base_heads=2"], r"model\.base_heads must come with a model\.base_width"),
    ],
)
def test_what_cannot_be_is_said(words: list[str], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        model(*(f"model.{word}" for word in words))


def test_models_that_differ_in_more_than_their_width_are_refused() -> None:
    tokens = LatentTokens(16, 4, 2)
    small, deep = DiTMoE(tokens, 3, 16, 1, 2), DiTMoE(tokens, 3, 32, 2, 2)
    with pytest.raises(
        ValueError, match=r"same parameters at its base width, blocks\.1\.\S+ is missing there"
    ):
        set_base(deep, small)
    with pytest.raises(ValueError, match=r"same parameters at its base width, blocks\.1\.\S+ is there alone"):
        set_base(small, deep)
    built = model("model.base_width=24")
    with pytest.raises(ValueError, match=r"optimiser like Adam, with betas, got SGD"):
        ParameterGroups().optimizer(partial(torch.optim.SGD, lr=0.1), built, Mesh())


def test_what_shapes_do_not_say_a_class_must() -> None:
    """A bare parameter whose last axis grows is a table of vectors or a matrix; the two learn otherwise."""
    tokens = LatentTokens(16, 4, 2)

    def pair(conditioning: type[Numbers]) -> dict:
        return compare(*(DiTMoE(tokens, partial(conditioning, num_classes=1), w, 1, 2) for w in (32, 16)))

    with pytest.raises(
        ValueError, match=r"conditioning\.table may be .* parameter_kinds of its class must say"
    ):
        pair(Numbers)
    told = pair(type("Told", (Numbers,), {"parameter_kinds": {"table": "embedding"}}))
    assert told["conditioning.table"].kind == "vector"
    assert told["conditioning.vector.weight"].kind == "input"
    assert told["blocks.0.cross_attention.kv.weight"].kind == "hidden"


def stream(width: int, base: int | None) -> float:
    """How large the residual stream of a model is after a few steps of AdamW."""

    def make(width: int) -> DiTMoE:
        torch.manual_seed(0)
        router = partial(TokenChoice, num_experts=4, top_k=2)
        return DiTMoE(
            LatentTokens(width, 4, 2),
            3,
            width,
            3,
            width // 16,
            router=router,
            expert_ratio=0.5,
            shared_ratio=0.5,
        )

    built, found = make(width), []
    if base:
        set_base(built, make(base))
    built.blocks[-1].register_forward_hook(
        lambda *parts: found.append(parts[2][0].square().mean().sqrt().item())
    )
    optimizer, rates = ParameterGroups().optimizer(
        partial(torch.optim.AdamW, lr=8e-3, betas=(0.9, 0.99)), built, Mesh()
    )
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    g = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, 12, 4, 4, 4, generator=g)
    x = x.mean(dim=(2, 3), keepdim=True) * 4  # something to learn
    t, y = torch.linspace(20, 980, 12), torch.arange(12) % 3
    s = (t / 1000)[:, None, None, None]
    for _ in range(7):
        output, routings = built((1 - s) * x + s * noise, t, y)
        loss = (output - (noise - x)).square().mean()
        (
            loss + sum(extra.coefficient * extra.value for r in routings for extra in r.losses.values())
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    return found[-1]


def test_activations_stay_where_they_are_when_the_width_grows() -> None:
    base = stream(64, None)
    assert 0.75 < stream(256, 64) / base < 1.33
    assert stream(256, None) / base > 3
