"""A text encoder's folder of a stranger is refused in one line before it takes memory or names code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
    (folder / name).write_text(json.dumps(json.loads(files[name]) | more))
    return Transformers(folder)


def read(made: Transformers) -> tuple[int, ...]:
    return tuple(made.encode("a a " * made.about.empty + "a", torch.device("cpu")).tokens.shape)


def test_it_is_read(files: dict[str, bytes], tmp_path: Path) -> None:
    assert read(encoder(files, tmp_path)) == (3, 8)


def _replacing(times: int) -> dict[str, Any]:
    rule = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    return {"type": "Sequence", "normalizers": [rule] * times}


REGEX = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("name", "more", "match"),
    [
        ("config.json", {"num_layers": 10**9}, "more parts than its"),
        ("config.json", {"_attn_implementation": "somebody/kernels"}, "names code of others"),
        ("config.json", {"text_config": [{"attn_implementation": "x/y"}]}, "names code of others"),
        ("config.json", {"quantization_config": {"quant_method": "x"}}, "names code of others"),
        ("tokenizer.json", {"normalizer": _replacing(9)}, r"make captions 1e\+09 times as long"),
    ],
)
def test_it_is_refused(
    name: str, more: dict[str, Any], match: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^[^\n]*{match}[^\n]*$"):
        read(encoder(files, tmp_path, name, **more))


def test_a_panic_of_the_tokenizer_is_one_line(files: dict[str, bytes], tmp_path: Path) -> None:
    made = encoder(files, tmp_path, "tokenizer.json", pre_tokenizer=REGEX)
    ends: list[Callable[[], object]] = [
        lambda: made.count("a" * 60 + "!"),
        lambda: made._numbers("a" * 60 + "!"),
    ]
    for end in ends:
        with pytest.raises(ValueError, match=r"^[^\n]*cannot be opened as a text encoder: Onig[^\n]*$"):
            end()
