"""A text encoder's folder of a stranger is refused in one line before it takes memory or names code."""

import base64
import json
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from ditmoe.checkpoint import open_file, tokenizer_rules
from ditmoe.checkpoint.transformers_folder import one_line
from ditmoe.text.transformers import Transformers

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of a tiny T5."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("t5")
    sizes = {"vocab_size": 8, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    transformers.T5EncoderModel(transformers.T5Config(**sizes)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def encoder(files: dict[str, bytes], folder: Path, name: str = "config.json", **more: Any) -> Transformers:
    """One whose file says more."""
    for file, content in files.items():
        (folder / file).write_bytes(content)
    (folder / name).write_text(json.dumps(json.loads(files.get(name, b"{}")) | more))
    return Transformers(folder)


def read(made: Transformers) -> tuple[int, ...]:
    return tuple(made.encode("a a " * made.about.empty + "a", torch.device("cpu")).tokens.shape)


def test_it_is_read(files: dict[str, bytes], tmp_path: Path) -> None:
    assert read(encoder(files, tmp_path)) == (3, 8)


def test_a_pooler_that_is_not_there_is_not_drawn(files: dict[str, bytes], tmp_path: Path) -> None:
    """A BERT of masked words has none; one drawn at random gave another pooled vector at each start."""
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    made = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=8, **sizes))
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    made.save_pretrained(tmp_path)
    states = Transformers(tmp_path).encode("a a", torch.device("cpu"))
    assert torch.allclose(states.pooled.float(), states.tokens.float().mean(0), atol=1e-2)


def _replacing(times: int) -> dict[str, Any]:
    rule = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    return {"type": "Sequence", "normalizers": [rule] * times}


def _lowering(times: int) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * times}


def _around(pieces: int, numbers: int) -> dict[str, Any]:
    token = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    ids = {"id": "</s>", "ids": [2] * numbers, "tokens": ["</s>"] * numbers}
    own = {"Sequence": {"id": "A", "type_id": 0}}
    pair = [own, {"Sequence": {"id": "B", "type_id": 0}}]
    kind = {"type": "TemplateProcessing", "pair": pair, "special_tokens": {"</s>": ids}}
    return {**kind, "single": [*[token] * pieces, own]}


def _table(text: str) -> str:
    """A character map whose trie, of four bytes, leads to a text."""
    return base64.b64encode((4).to_bytes(4, "little") + bytes(4) + text.encode() + b"\0").decode()


def _words(number: int) -> dict[str, Any]:
    return {"type": "WordLevel", "vocab": {"<unk>": 0, "a": number, "</s>": 2}, "unk_token": "<unk>"}


REGEX = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("name", "more", "match"),
    [
        ("config.json", {"num_layers": 10**6}, "more parts than its"),
        ("config.json", {"_attn_implementation": "somebody/kernels"}, "names code of others"),
        ("config.json", {"text_config": [{"attn_implementation": "x/y"}]}, "names code of others"),
        ("config.json", {"quantization_config": {"quant_method": "x"}}, "names code of others"),
        ("config.json", {"num_layers": 10**9}, "num_layers is absurd"),
        ("config.json", {"num_labels": 10**9}, "num_labels is absurd"),
        ("config.json", {"num_labels": 2**17}, "num_labels is absurd"),  # took minutes
        ("config.json", {"text_config": {"depths": [1, 2**62]}}, f"depths is absurd, refused: {2**62}"),
        ("model.safetensors.index.json", {"weight_map": 3}, "its weight_map, got 3"),
        ("config.json", {"relative_attention_num_buckets": 10**9}, "num_buckets is absurd"),
        ("config.json", {"vocab_size": 10**7}, "makes 80000[0-9]+ numbers, but its weights are [0-9]{3}$"),
        ("config.json", {"max_position_embeddings": 2**20}, "positions of 8 numbers, but no file holds them"),
        (
            "config.json",
            {"max_position_embeddings": 2**20, "rope_theta": 1.0, "model_type": "roformer"},
            "positions of 8 numbers, but no file holds them",
        ),
        (
            "config.json",
            {"num_layers": 2},
            r"are not whole: encoder.block.1.layer.0.SelfAttention.k.weight is miss",
        ),
        (
            "config.json",
            {"d_ff": 16},
            r"config.json: encoder.block.0.*wi.weight is \[8, 8\], must be \[16, 8\]",
        ),
        (
            "config.json",
            {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2},
            "are not whole: .* is miss",
        ),
        ("config.json", {"model_type": "bark"}, "must say a hidden_size between 1 and 65536, got None"),
        ("tokenizer.json", {"normalizer": _lowering(300)}, "must have at most 256 rules, got 30[0-9]"),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": ""}},
            r"must have patterns that match in at most 524288 ways, got 2\.54e\+30",
        ),
        ("tokenizer.json", {"normalizer": _replacing(9)}, r"make captions 1e\+09 times as long"),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Prepend", "prepend": "A" * 500_000}},
            r"make captions 5e\+05 times as long",
        ),
        (
            "tokenizer.json",
            {"pre_tokenizer": {"type": "Metaspace", "replacement": "_" * 2000, "prepend_scheme": "always"}},
            r"make captions 2e\+03 times as long",
        ),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": _table("x" * 3000)}},
            r"make captions 3e\+03 times as long",
        ),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A"}},
            "tokenizer.json must hold a character map in base64",
        ),
        (
            "tokenizer.json",
            {"post_processor": {"special_tokens": {"a": {"ids": 1e999}}}},
            "as a text encoder",
        ),
        ("tokenizer.json", {"post_processor": {"single": 5}}, "as a text encoder"),
        ("tokenizer.json", {"post_processor": _around(20_000, 1)}, "at most 256 tokens around .*, got 20001"),
        ("tokenizer.json", {"post_processor": _around(100, 100)}, "at most 256 tokens around .*, got 10001"),
        (
            "tokenizer.json",
            {"post_processor": _around(200, 1)},
            "makes 200 tokens of a caption, above limit=128",
        ),
        ("tokenizer.json", {"model": {"max_input_chars_per_word": 2**31}}, "at most 1000 letters"),
        ("tokenizer_config.json", {"tokenizer_class": "RagTokenizer"}, "as a text encoder"),
        ("tokenizer.json", {"model": _words(999)}, "has 8 embeddings, but a token of number 999"),
        (
            "tokenizer_config.json",
            {"extra_special_tokens": ["x"] * 5000},
            "at most 4096 extra_special_tokens",
        ),
    ],
)
def test_it_is_refused(
    name: str, more: dict[str, Any], match: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^[^\n]*{match}[^\n]*$"):
        read(encoder(files, tmp_path, name, **more))


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "vocab.txt", "generation_config.json", "b.safetensors"]
)
def test_what_is_no_file_is_not_waited_for(name: str, files: dict[str, bytes], tmp_path: Path) -> None:
    made = encoder(files, tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"^[^\n]*{name} must be a plain file[^\n]*$"):
        read(made)


def test_an_index_of_weights_leads_nowhere_else(files: dict[str, bytes], tmp_path: Path) -> None:
    """Shards elsewhere were read, and the fingerprint was of the file that was not."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    encoder(files, folder)
    for name in ("elsewhere.safetensors", "encoder/b.safetensors"):
        shutil.copy(folder / "model.safetensors", tmp_path / name)
    (folder / "model.safetensors").unlink()
    names = list(open_file(folder / "b.safetensors"))
    for name, elsewhere in (
        ("../elsewhere.safetensors", True),
        ("none.safetensors", True),
        ("b.safetensors", False),
    ):
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        told = pytest.raises(ValueError, match=rf"^[^\n]*must name files of weights beside it[^\n]*'{name}'$")
        with told if elsewhere else nullcontext():
            read(Transformers(folder))


def test_the_hub_is_not_asked_for_what_a_configuration_names(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *host, **_: asked.append(host) or [])
    detr = {"model_type": "detr", "backbone": "someone/x", "use_pretrained_backbone": True}
    with pytest.raises(ValueError, match=r"^[^\n]*$"):
        read(encoder(files, tmp_path, **detr, use_timm_backbone=False))
    assert asked == []


def test_traces_of_rust_are_not_shown(
    files: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    nowhere = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}]}
    made = encoder(
        files, tmp_path, "tokenizer.json", post_processor={**nowhere, "pair": [], "special_tokens": {}}
    )
    with pytest.raises(ValueError, match=r"^[^\n]*no entry found for key$"):
        read(made)
    assert capfd.readouterr().err == ""


def test_what_is_said_before_the_end_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert one_line(lambda: os.write(2, "a warning é".encode()), tmp_path) == 12
    assert capfd.readouterr().err == "a warning é"


def test_a_panic_of_the_tokenizer_is_one_line(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_rules, "MOST_OF_ONE", 1e300)
    monkeypatch.setattr(tokenizer_rules, "MOST_WAYS", 1e300)
    made = encoder(files, tmp_path, "tokenizer.json", pre_tokenizer=REGEX)
    ends: list[Callable[[], object]] = [
        lambda: made.count("a" * 60 + "!"),
        lambda: made._numbers("a" * 60 + "!"),
    ]
    for end in ends:
        with pytest.raises(ValueError, match=r"^[^\n]*cannot be opened as a text encoder: Onig[^\n]*$"):
            end()
