"""Text: models, runs, pipelines and commands that are told what to draw by sentences."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import ditmoe
from ditmoe.conditioning import ClassLabel, captions_of
from ditmoe.config import build
from ditmoe.config.restore import restore
from ditmoe.export import export
from ditmoe.finishing import asked_next
from ditmoe.inference import draw_from, sample_checkpoint
from ditmoe.model import DiTMoE, transfer
from ditmoe.moe import TokenChoice
from ditmoe.prepare import prepare
from ditmoe.text import Learned, MiniLM, Text
from ditmoe.train import make_trainer
from ditmoe.training.resume import differing, fixed, resume
from modalities.image import LatentTokens
from tests import subjects
from tests.conditioning.captioned import asked, text, tiny_bert
from tests.many import together
from tests.training.test_trainer import config

CPU = torch.device("cpu")
LEARNED = ("encoder@conditioning.encoder=learned", "conditioning.encoder.width=16")


def settings(folder: Path, *words: str) -> dict:
    """Of a run on captioned clouds; with a BERT drawn at random unless another encoder is named."""
    if not any(word.startswith("encoder@") for word in words):
        bert = folder / "bert" if (folder / "bert").exists() else tiny_bert(folder / "bert")
        words = (f"conditioning.encoder.path={bert}", *words)
    text = ("conditioning=text", "conditioning.states=null", "trainer.steps=2", *words)
    composed = config(*text)
    assert composed["modality"]["captions"]
    composed["modality"]["_target_"] = "tests.conditioning.captioned.Captioned"
    return composed


def run(folder: Path, *words: str):
    asked = settings(folder.parent, *words)
    return make_trainer(asked, build.make_modality(asked), folder), asked


# --- models


def latents(conditioning: Callable, seed: int = 0, **options) -> DiTMoE:
    torch.manual_seed(seed)
    router = partial(TokenChoice, num_experts=4, top_k=2)
    return DiTMoE(LatentTokens(24, 3), partial(conditioning, num_classes=3), 24, 2, 2, router, **options)


@torch.no_grad()
def test_a_model_of_classes_goes_on_as_one_of_text(tmp_path: Path) -> None:
    """Its first prediction is that without a class, whatever the prompt is; `label=none` was that there."""
    source = latents(ClassLabel, seed=1)
    for parameter in source.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    encoder = partial(MiniLM, path=tiny_bert(tmp_path / "bert"))
    target = latents(partial(Text, encoder=encoder))
    report = transfer(target, source.state_dict())
    assert report.adopted == ["conditioning.bias"]
    assert any("from another kind of conditioning: conditioning" in line for line in report.lines())
    x, t = torch.randn(2, 3, 4, 6), torch.tensor([100.0, 900.0])
    without = source.eval()(x, t, torch.tensor([3, 3]))[0]
    given = target.eval()(x, t, target.conditioning.read(asked("a chair", "a table")))[0]
    assert torch.equal(given, without)
    assert not torch.allclose(given, source(x, t, torch.tensor([0, 1]))[0], atol=1e-3)


def test_chosen_blocks_attend_to_tokens(tmp_path: Path) -> None:
    learned = partial(Text, encoder=partial(Learned, width=16, caption_words=["a"]))
    net = latents(learned, cross_layers=[1])
    assert [block.cross_attention is not None for block in net.blocks] == [False, True]
    with pytest.raises(ValueError, match=r"cross_layers must name layers between 0 and 1, got \[2\]"):
        latents(learned, cross_layers=[2])
    assert all(block.cross_attention is None for block in latents(ClassLabel, cross_layers=[1]).blocks)


def test_every_router_learns_from_captions() -> None:
    """Gradients reach the words and both ways into the model."""
    words = ["small", "large", "a", "chair"]
    for name, folder in subjects.find("router").items():
        if name == "dense":
            continue
        section = subjects.section("router", name, folder)
        torch.manual_seed(0)
        conditioning = partial(
            Text, encoder=partial(Learned, width=16, caption_words=words), num_classes=0, hidden_size=24
        )
        net = DiTMoE(
            LatentTokens(24, 3), lambda hidden_size, c=conditioning: c(), 24, 2, 2, build.make(section)
        )
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([100.0, 900.0])
        condition = net.conditioning.read(asked("a small chair", "a large and unknown one"))
        net(x, t, condition)[0].square().mean().backward()
        for part in (net.conditioning.encoder.table, net.conditioning.tokens, net.conditioning.pooled):
            assert part.weight.grad.isfinite().all(), name
            assert part.weight.grad.any(), name


@torch.no_grad()
def test_a_refiner_lets_the_tokens_of_a_caption_meet_and_starts_as_nothing() -> None:
    words = ["small", "large", "a", "chair", "table"]

    def tokens(text: Text, *captions: str) -> torch.Tensor:
        return text(text.read(asked(*captions))).tokens

    torch.manual_seed(0)
    encoder = partial(Learned, width=16, layers=0, caption_words=words)
    text = latents(partial(Text, encoder=encoder, layers=2)).conditioning
    assert isinstance(text, Text)
    text.encoder.table.weight.normal_()  # the words differ
    refiner, text.refiner = text.refiner, None
    plain = tokens(text, "a chair", "a table")
    assert torch.equal(plain[0, 1], plain[1, 1])  # the article knows nothing of its noun
    text.refiner = refiner
    assert torch.equal(tokens(text, "a chair", "a table"), plain)
    for layer in refiner.attention:
        layer.out.weight.normal_()
    refined = tokens(text, "a chair", "a table")
    assert not torch.allclose(refined[0, 1], refined[1, 1], atol=1e-3)
    longer = tokens(text, "a chair", "a small table a chair a large table")  # padding is not attended to
    assert torch.allclose(longer[0, :3], refined[0, :3], atol=1e-5)
    with pytest.raises(ValueError, match="layers must"):
        Text(24, 0, encoder, layers=-1)


# --- runs, checkpoints, pipelines


def test_a_run_keeps_which_encoder_it_was_and_none_of_its_weights(tmp_path: Path) -> None:
    first, composed = run(tmp_path / "run")
    assert first.run()
    names = [name for name in first.model.state_dict() if name.startswith("conditioning.encoder.")]
    assert names == ["conditioning.encoder.null_tokens", "conditioning.encoder.null_pooled"]
    assert not any("encoder" in name for name, _ in first.model.named_parameters())
    assert first.ema.model.conditioning.encoder.lookup is first.model.conditioning.encoder.lookup
    about = composed["conditioning"]["about"]
    assert about["fingerprint"] == MiniLM(64, tmp_path / "bert").about.fingerprint

    (paths,) = [sample_checkpoint(tmp_path / "run", num=2, trust=True, prompt="a small chair", negative="a")]
    assert paths[0].parent.name == "samples-a small chair-a-seed0"
    said = json.loads((paths[0].parent / "prompts.json").read_text())
    assert said == {"prompts": ["a small chair"] * 2, "negative": ["a"] * 2, "seed": 0}
    shown = sample_checkpoint(tmp_path / "run", num=1, trust=True, out=tmp_path / "set.npz")
    assert json.loads(shown[1].with_suffix(".prompts.json").read_text())["prompts"] == ["a small bed"]
    real = first.modality.reference("test")  # whose captions an evaluation asks for
    assert "tokens" in first.model.conditioning.read(real.asked).values

    tiny_bert(tmp_path / "bert", seed=1)  # other weights in its place
    with pytest.raises(ValueError, match="another conditioning"):
        resume(*run(tmp_path / "run"))
    restored = restore(tmp_path / "run", trusted=True)
    with pytest.raises(ValueError, match=r"the text encoder must be that of training, bert .*, got bert"):
        restored.model.conditioning.ask(1, [], prompt="a chair")
    nothing = restored.model.conditioning.ask(2, restored.modality.classes, label="none")
    assert len(draw_from(restored, nothing)) == 2  # which needs no encoder


def test_a_run_goes_on_where_captions_were_added() -> None:
    before = {"encoder": "a", "examples": ["a chair"], "states": None}
    after = {"encoder": "a", "examples": ["a chair", "a sofa, red"], "states": "cache"}
    assert fixed(before) == fixed(after) != fixed(after | {"encoder": "b"})
    assert asked_next(before) == "'prompt=a chair'"
    assert asked_next({}) == "label=0"


def test_a_run_of_other_options_names_the_first_of_them() -> None:
    earlier = {"tokens": True, "layers": 0, "encoder": {"limit": 8}}
    assert differing(earlier, {**earlier, "layers": 1}) == ".layers (0)"
    assert differing(earlier, {**earlier, "encoder": {"limit": 9}}) == ".encoder.limit (8)"
    assert differing(earlier, {**earlier, "new": 1}) == differing(None, earlier) == ""


def test_guidance_leads_away_from_the_negative_prompt(tmp_path: Path) -> None:
    trained, _ = run(tmp_path / "run", *LEARNED)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained.ema.model.load_state_dict(trained.model.state_dict())
    trained.run()
    restored = restore(tmp_path / "run", trusted=True)
    conditioning = restored.model.conditioning
    assert conditioning.encoder.numbers["small"] > 1  # the vocabulary came with the checkpoint
    assert conditioning.is_told({"label": "none"})
    # Which says not what is drawn.
    assert not conditioning.is_told({"prompt": None, "negative": "a large table"})

    def drawn(prompt: str, negative: str | None = None, **how) -> np.ndarray:
        wanted = conditioning.ask(2, [], prompt=prompt)
        away = conditioning.away(wanted, negative=negative)
        return draw_from(restored, wanted, negative=away, **how).data

    plain = drawn("a small chair", guidance=3.0)
    assert not np.allclose(plain, drawn("a small chair", "a large table", guidance=3.0))
    assert not np.allclose(plain, drawn("a large sofa", guidance=3.0))
    assert np.array_equal(
        drawn("a small chair", "a large table", guidance=3.0, interval=[0, 0]),
        drawn("a small chair", guidance=1.0),
    )


def test_a_pipeline_takes_prompts_and_names_its_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own" / "modality"
    own.mkdir(parents=True)
    (own / "own.yaml").write_text("_target_: tests.conditioning.captioned.Captioned\n")
    monkeypatch.setattr("ditmoe.config.folders.installed", lambda: {"own": tmp_path / "own"})
    run(tmp_path / "run")[0].run()
    with pytest.raises(ValueError, match=r"wants to open conditioning\.encoder\.path.*trust=true"):
        restore(tmp_path / "run").model.conditioning.ask(1, [], prompt="a chair")
    export(tmp_path / "run", tmp_path / "pipe", trust=True)
    assert str(tmp_path) not in (tmp_path / "pipe/transformer/config.json").read_text()
    with pytest.raises(ValueError, match=r"not installed|must be that of training"):
        ditmoe.Pipeline.from_pretrained(tmp_path / "pipe")("a small chair")
    pipe = ditmoe.Pipeline.from_pretrained(tmp_path / "pipe", text_encoder=tmp_path / "bert")
    pipe.set_progress_bar_config(disable=True)
    one = pipe("a small chair", negative_prompt="a table", guidance_scale=2.0, num_samples=2).samples
    restored = restore(tmp_path / "run", trusted=True)
    wanted = restored.model.conditioning.ask(2, [], prompt="a small chair")
    away = restored.model.conditioning.away(wanted, negative="a table")
    assert np.array_equal(draw_from(restored, wanted, negative=away, guidance=2.0).data, one)
    assert pipe(["a small chair", "a large table"]).samples.shape[0] == 2
    assert pipe("chair").samples.shape == pipe(prompt="a chair").samples.shape
    with pytest.raises(ValueError, match="label and prompt cannot be said together"):
        pipe(label="chair", prompt="a table")


def test_prepare_encodes_the_captions_that_training_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = f"conditioning.states={tmp_path / 'states'}"
    composed = settings(tmp_path, states)
    prepare(
        {
            "modality": composed["modality"],
            "conditioning": composed["conditioning"],
            "source": None,
            "out": None,
        }
    )
    assert "captions by bert" in capsys.readouterr().out
    trained, _ = run(tmp_path / "run", states)
    trained.run()
    assert trained.model.conditioning.encoder.lookup.encoded <= 1  # of "", which no data has
    with pytest.raises(ValueError, match="leave source and out away"):
        prepare({**composed, "source": "x", "out": None})


def test_two_processes_train_it_as_one_does(tmp_path: Path) -> None:
    alone, _ = run(tmp_path / "one", "trainer.precision=fp32", *LEARNED)
    expected = [alone._train_step()["losses"]["loss"].item() for _ in range(2)]
    assert together(losses, 2, tmp_path / "two") == pytest.approx(expected, abs=1e-5)


def losses(folder: Path) -> list[float]:
    shared, _ = run(folder, "trainer.precision=fp32", *LEARNED)
    return [shared._train_step()["losses"]["loss"].item() for _ in range(2)]


# --- words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"prompt": ""}, "prompt must say something, got ''"),
        ({"prompt": " \n "}, "prompt must say something"),
        ({"prompt": "a\x1b[31m"}, r"prompt must be text that can be printed, got a\\x1b"),
        ({"prompt": "a\u202eb"}, "can be printed"),
        ({"prompt": "a" * 20_001}, "at most 20000 letters, got 20001"),
        ({"prompt": {"a": 1}}, "prompt must be text, or a list of texts, got dict"),
        ({"prompt": []}, "between 1 and 10000 sentences, got 0"),
        ({"prompt": "a", "label": "x"}, "prompt and label cannot be said together"),
        ({"label": "chiar"}, "label 'chiar' is not a class of this model; did you mean chair"),
        ({"prompts": "missing.txt"}, "missing.txt"),
    ],
)
def test_what_is_no_prompt_is_answered_in_one_line(words: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=message) as error:
        text(tmp_path).ask(2, ["chair", "x"], **words)
    assert "\n" not in str(error.value)


def test_prompts_of_any_script_from_words_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, file = text(tmp_path), tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa chair\r\n\n  椅子  \n의자\n".encode())
    assert captions_of(made.ask(9, [], prompts=str(file))) == ["a chair", "椅子", "의자"]
    assert "knows few words of this prompt: 의자" in capsys.readouterr().out
    assert captions_of(made.ask(2, [], prompt=["a", 7])) == ["a", "7"]
    assert captions_of(made.ask(2, [], prompt="a \n chair")) == ["a chair"] * 2
    assert captions_of(made.ask(2, ["table", "armchair"], label="armchair")) == ["an armchair"] * 2
    assert captions_of(made.ask(3, ["table", "armchair"])) == ["a table", "an armchair", "a table"]
    made.ask(1, [], prompt="a chair " * 12)
    assert "reads 16 of 26 tokens of this prompt, up to 'a chair a chair'" in capsys.readouterr().out
    file.write_bytes(b"a\nb\xff\n")
    with pytest.raises(ValueError, match=r"line 2 of .* must be text that can be printed, got b\\xff"):
        made.ask(1, [], prompts=file)
    with pytest.raises(ValueError, match="negative must be one, or one for each of 2 prompts, got 3"):
        made.away(made.ask(2, [], prompt="a"), negative=["a", "b", "c"])
    with pytest.raises(ValueError, match="reads captions, and what is asked for has none"):
        made.read(torch.tensor([0, 1]))
