"""What is asked for: laws of the value, of every module that embeds it, and a second kind that nobody knows of."""

import inspect
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

import ditmoe
from ditmoe.conditioning import ClassLabel, Condition, Conditioning
from ditmoe.config import build
from ditmoe.config.restore import restore
from ditmoe.cost import count
from ditmoe.export import export
from ditmoe.inference import draw_from, evaluate_checkpoint, sample_checkpoint
from ditmoe.model import DiTMoE, MaskedDiTMoE
from ditmoe.moe import TokenChoice
from ditmoe.text import Learned, Text
from ditmoe.train import make_trainer
from ditmoe.training.resume import resume
from modalities.image import LatentTokens
from tests import subjects
from tests.conditioning.captioned import tiny_bert
from tests.conditioning.numbers import Numbers
from tests.many import together
from tests.training.test_trainer import config, same

D, CLASSES = 24, ["a", "b", "c"]


def find(*folders: Path) -> dict[str, Callable[..., Conditioning]]:
    """What makes the module of every YAML of these folders, by default of all that there are (`tests/subjects.py`)."""
    found = {}
    for name, folder in subjects.find("conditioning", *folders).items():
        section = subjects.section("conditioning", name, folder)
        if "encoder" in section:  # whose weights are a download
            small = {"path": str(tiny_bert(Path(TEXTS.name)))}
            section = section | {"encoder": section["encoder"] | small, "states": None}
        found[name] = build.make(section)
    return found


TEXTS = TemporaryDirectory()
LEARNED = partial(Text, encoder=partial(Learned, width=16, limit=8, caption_words=["a", "b", "c"]))
KINDS = {**find(), "numbers": Numbers, "text_learned": LEARNED}
MEASURED = {"_target_": "tests.conditioning.numbers.Numbers", "_partial_": True}


def conditioning(make: Callable[..., Conditioning]) -> Conditioning:
    torch.manual_seed(0)
    made = make(hidden_size=D, num_classes=len(CLASSES))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


def some(make: Callable[..., Conditioning], num: int = 4) -> Condition:
    """Different for each sample, as far as its kind can ask."""
    if make is Numbers:
        values = torch.randn(num, 3, generator=torch.Generator().manual_seed(1))
        return Condition({"numbers": values}, torch.zeros(num, dtype=torch.bool))
    return conditioning(make).ask(num, CLASSES)


def condition(lengths: list[int], null: list[bool]) -> Condition:
    g = torch.Generator().manual_seed(len(null))
    parts = [
        Condition(
            {
                "label": torch.tensor([i]),
                "tokens": torch.randn(1, n, 2, generator=g),
                "mask": torch.ones(1, n).bool(),
            },
            torch.tensor([no]),
        )
        for i, (n, no) in enumerate(zip(lengths, null, strict=True))
    ]
    return Condition.cat(parts)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=6), st.data())
def test_a_condition_is_a_value(drawn: list[tuple[int, bool]], data: st.DataObject) -> None:
    lengths, null = [list(x) for x in zip(*drawn, strict=True)]
    whole = condition(lengths, null)
    assert whole.values["mask"].sum(1).tolist() == lengths  # padded, and told so
    rows = data.draw(st.lists(st.integers(0, len(null) - 1), min_size=1))
    assert same(whole.take(rows).tensors(), {k: v[rows] for k, v in whole.tensors().items()})
    cut = data.draw(st.integers(0, len(null)))
    assert same(
        Condition.cat([whole.take(slice(cut)), whole.take(slice(cut, None))]).tensors(), whole.tensors()
    )
    assert same(Condition.of_tensors(load(save(whole.tensors()))).tensors(), whole.tensors())
    dropped = whole.drop(torch.tensor([i % 2 == 0 for i in range(len(null))]))
    assert dropped.null.tolist() == [no or i % 2 == 0 for i, no in enumerate(null)]
    assert dropped.values == whole.values
    assert whole.nothing.null.all()
    assert whole.labels(9).tolist() == [9 if no else i for i, no in enumerate(null)]
    assert whole.to("cpu").null.device.type == "cpu"
    with pytest.raises(FrozenInstanceError):
        whole.null = whole.null  # type: ignore[misc]


def test_conditions_that_are_none() -> None:
    own = condition([1, 2], [False, True])
    with pytest.raises(ValueError, match="different kinds"):
        Condition.cat([own, ClassLabel(4, 3).nothing(1)])
    for wrong in ({}, {"null": torch.zeros(2)}, {"null": torch.zeros(2).bool(), "x": torch.zeros(3)}):
        with pytest.raises(ValueError, match="a condition"):
            Condition.of_tensors(wrong)
    for wrong in (torch.zeros(2), torch.zeros(2, 2).long(), [1, 2], None):
        with pytest.raises(ValueError, match="must be a Condition or whole numbers"):
            conditioning(ClassLabel).read(wrong)


def embeddings_are_of_each_sample_alone_and_nothing_is_nothing(make: Callable[..., Conditioning]) -> None:
    made, asked = conditioning(make), some(make)
    whole = made(asked)
    for i in range(len(asked)):
        one = made(asked.take([i]))
        for part in ("vector", "tokens", "mask"):
            if (value := getattr(whole, part)) is not None:
                assert torch.allclose(value[i : i + 1], getattr(one, part), atol=1e-6)
    assert not torch.allclose(whole.vector[0], whole.vector[1])
    nothing = made(asked.nothing)
    assert nothing.null.all()
    assert torch.allclose(nothing.vector, made(made.nothing(len(asked))).vector, atol=1e-6)
    assert torch.allclose(nothing.vector[0], nothing.vector[1])
    assert set(inspect.signature(type(made).__init__).parameters) >= {"hidden_size", "num_classes"}
    assert (whole.tokens is not None) == made.gives_tokens


def model(make: Callable[..., Conditioning], masked: bool = False, seed: int = 0) -> DiTMoE:
    torch.manual_seed(seed)
    kind = partial(MaskedDiTMoE, decoder_depth=1, decoder_window=2) if masked else DiTMoE
    router = partial(TokenChoice, num_experts=4, top_k=2)
    return kind(LatentTokens(D, 3), partial(make, num_classes=len(CLASSES)), D, 2, 2, router)


def moved(net: DiTMoE) -> DiTMoE:
    """With weights that are nowhere zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net.eval()


@torch.no_grad()
def what_is_asked_matters_to_its_sample_alone_packed_or_not(make: Callable[..., Conditioning]) -> None:
    net, asked = moved(model(make)), some(make, 3)
    g = torch.Generator().manual_seed(2)
    x, t = torch.randn(3, 3, 4, 6, generator=g), torch.tensor([100.0, 500.0, 900.0])
    whole = net(x, t, asked)[0]
    other = net(x, t, asked.drop(torch.tensor([False, True, False])))[0]
    assert torch.allclose(whole[[0, 2]], other[[0, 2]], atol=1e-5)
    assert not torch.allclose(whole[1], other[1], atol=1e-3)
    sizes = [(4, 6), (2, 2), (6, 4)]
    samples = [torch.randn(3, *size, generator=g) for size in sizes]
    tokens, layout = net.tokens.pack(samples)
    packed = net(tokens[None], t, asked, layout)[0][0].split(layout.lengths)
    for i, sample in enumerate(samples):
        alone = net(sample[None], t[i : i + 1], asked.take([i]))[0]
        own = net.tokens.layout(alone)
        assert torch.allclose(net.tokens.patchify(alone, own)[0], packed[i], atol=1e-4)


@torch.no_grad()
def test_a_fresh_model_ignores_what_it_may_attend_to() -> None:
    net, asked = model(Numbers), some(Numbers, 2)
    x, t = torch.randn(2, 3, 4, 6), torch.tensor([100.0, 900.0])
    torch.nn.init.normal_(net.final.linear.weight)
    assert all(not block.cross_attention.out.weight.any() for block in net.blocks)
    before = net(x, t, asked)[0]
    for block in net.blocks:
        torch.nn.init.normal_(block.cross_attention.out.weight)
    assert not torch.allclose(before, net(x, t, asked)[0])


@torch.no_grad()
def test_padding_is_no_token() -> None:
    net, asked = moved(model(Numbers)), some(Numbers, 2)
    x, t = torch.randn(2, 3, 4, 6), torch.tensor([100.0, 900.0])
    seen: list = []
    hook = net.conditioning.register_forward_hook(lambda *call: seen.append(call[2]))
    before = net(x, t, asked)[0]
    hook.remove()
    embedded = seen[0]
    longer = torch.cat([embedded.tokens, torch.full_like(embedded.tokens, 7.0)], dim=1)
    mask = torch.cat([embedded.mask, torch.zeros_like(embedded.mask)], dim=1)
    net.conditioning.forward = lambda _: type(embedded)(embedded.vector, embedded.null, longer, mask)
    assert torch.allclose(net(x, t, asked)[0], before, atol=1e-5)


def test_routers_see_which_samples_are_unconditional() -> None:
    net, seen = model(ClassLabel), []
    for router in net.routers:
        router.register_forward_pre_hook(lambda _, args: seen.append(args[1].asked.null.tolist()))
    net(torch.zeros(3, 3, 4, 6), torch.zeros(3), torch.tensor([0, 3, 2]))
    assert seen == [[False, True, False]] * len(net.routers)


def a_plan_counts_it(make: Callable[..., Conditioning]) -> None:
    net = model(make)
    counted = count(lambda: model(make), (3, 4, 6))
    assert counted.trainable == sum(p.numel() for p in net.parameters())
    if net.conditioning.gives_tokens:
        assert counted.multiply_adds > count(lambda: model(ClassLabel), (3, 4, 6)).multiply_adds


LAWS = [
    embeddings_are_of_each_sample_alone_and_nothing_is_nothing,
    what_is_asked_matters_to_its_sample_alone_packed_or_not,
    a_plan_counts_it,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_holds(name: str, law: Callable[[Callable[..., Conditioning]], None]) -> None:
    law(KINDS[name])


@pytest.mark.parametrize("broken", [False, True])
def test_a_kind_that_is_given_on_the_fly_holds_all_laws_and_a_broken_one_not(
    broken: bool, tmp_path: Path
) -> None:
    name = f"mine_{broken}".lower()
    (tmp_path / "configs/conditioning").mkdir(parents=True)
    told = f"_target_: {name}.Mine\n_partial_: true\n"
    (tmp_path / f"configs/conditioning/{name}.yaml").write_text(told)
    seen = "vector + vector.mean(0)" if broken else "vector"
    (tmp_path / f"{name}.py").write_text(
        "import torch\nfrom ditmoe.conditioning import ClassLabel, Embedded\n\n\nclass Mine(ClassLabel):\n"
        "    def forward(self, condition):\n"
        "        embedded = super().forward(condition)\n"
        "        vector = embedded.vector\n"
        f"        return Embedded({seen}, embedded.null)\n"
    )
    make = find(tmp_path / "configs")[name]
    if broken:
        with pytest.raises(AssertionError):
            LAWS[0](make)
        return
    for law in LAWS:
        law(make)


def settings(*words: str) -> dict:
    composed = config("trainer.steps=3", *words)
    composed["conditioning"] = MEASURED
    composed["modality"]["_target_"] = "tests.conditioning.numbers.Measured"
    return composed


def run(folder: Path, *words: str):
    asked = settings(*words)
    return make_trainer(asked, build.make_modality(asked), folder), asked


def test_a_second_kind_trains_resumes_samples_and_is_measured_and_exported(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "run", "trainer.save_every=2")
    assert whole.run()
    assert any("cross_attention" in name for name, _ in whole.model.named_parameters())
    assert whole.batches(0).asked.values.keys() == {"label", "numbers"}
    again, asked = run(tmp_path / "run", "trainer.steps=4")
    resume(again, asked)
    assert again.run()

    restored = restore(tmp_path / "run", trusted=True)
    wanted = restored.model.conditioning.ask(3, (), numbers=[1.0, 2.0, 3.0])
    drawn = draw_from(restored, wanted, batch_size=2, guidance=2.0)
    assert drawn.labels is None
    assert drawn.names == ["sample-0000", "sample-0001", "sample-0002"]
    others = draw_from(restored, restored.model.conditioning.nothing(3), batch_size=2, guidance=2.0)
    assert not (drawn.data == others.data).all()
    paths = sample_checkpoint(tmp_path / "run", num=2, trust=True, batch_size=2, numbers=[1, 2, 3], points=9)
    assert len(paths) == 5
    assert paths[0].parent.name == "samples-[1, 2, 3]-seed0"
    with pytest.raises(ValueError, match=r"prompt is not an option.*numbers .a list of numbers.*points"):
        sample_checkpoint(tmp_path / "run", num=2, trust=True, prompt="a chair")
    report = evaluate_checkpoint(tmp_path / "run", trust=True, batch_size=16)
    assert "1-nna/cd" in report.values

    with pytest.raises(ValueError, match=r"class that is not trusted, refused: conditioning\._target_"):
        restore(tmp_path / "run")
    other = asked | {"conditioning": MEASURED | {"size": 2}}
    with pytest.raises(ValueError, match="another conditioning"):
        resume(again, other)


def test_a_pipeline_asks_for_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for group, target in {"conditioning": "Numbers", "modality": "Measured"}.items():
        (tmp_path / "own" / group).mkdir(parents=True)
        (tmp_path / "own" / group / "own.yaml").write_text(f"_target_: tests.conditioning.numbers.{target}\n")
    monkeypatch.setattr("ditmoe.config.folders.installed", lambda: {"own": tmp_path / "own"})
    run(tmp_path / "run")[0].run()
    export(tmp_path / "run", tmp_path / "pipe")
    pipe = ditmoe.Pipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(numbers=[1.0, 2.0, 3.0], num_samples=2, points=9)
    assert drawn.samples.shape == (2, 9, 3)
    assert drawn.labels is None
    restored = restore(tmp_path / "run")
    asked = restored.model.conditioning.ask(2, (), numbers=[1.0, 2.0, 3.0])
    assert np.array_equal(draw_from(restored, asked, points=9).data, drawn.samples)


def test_two_processes_train_it_as_one_does(tmp_path: Path) -> None:
    alone, _ = run(tmp_path / "one", "trainer.precision=fp32")
    expected = [alone._train_step()["losses"]["loss"].item() for _ in range(2)]
    assert together(losses, 2, tmp_path / "two") == pytest.approx(expected, abs=1e-5)


def losses(folder: Path) -> list[float]:
    shared, _ = run(folder, "trainer.precision=fp32")
    return [shared._train_step()["losses"]["loss"].item() for _ in range(2)]
