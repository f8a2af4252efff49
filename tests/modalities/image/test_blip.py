"""A BLIP from a folder: what transformers itself answers about pictures, and folders that are none."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalities.image.metrics.blip import Blip, Whole, question
from tests.modalities.image import blips
from tests.modalities.image.judged import pickled, spoilt, written

transformers = pytest.importorskip("transformers", reason="pip install 'ditmoe[transformers]'")
pytest.importorskip("tokenizers")
QUESTIONS = ["a red book?", "a blue cup?", "book?", "a " * 60 + "red?"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = blips.save(tmp_path_factory.mktemp("blip"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((16, 16), (24, 32), (9, 40))]


def expected(model: Any, picture: np.ndarray, words: str) -> float:
    """P(yes) / (P(yes) + P(no)) of the first token that transformers generates."""
    ids = blips.tokenizer()(words, truncation=True, max_length=35, return_tensors="pt")["input_ids"]
    ids[:, 0] = blips.ENC
    x = blips.processor()(picture, return_tensors="pt")["pixel_values"]
    told = {"max_new_tokens": 1, "output_scores": True, "return_dict_in_generate": True, "do_sample": False}
    chances = model.generate(input_ids=ids, pixel_values=x, **told).scores[0][0].double().softmax(-1)
    yes, no = (float(chances[blips.WORDS.index(word)]) for word in ("yes", "no"))
    return yes / (yes + no)


def test_answers_are_those_of_transformers(files: dict[str, bytes], tmp_path: Path) -> None:
    blip, model = Blip(written(files, tmp_path)), blips.blip()
    answers = np.array([blip(picture, QUESTIONS) for picture in pictures()])
    wanted = [[expected(model, picture, words) for words in QUESTIONS] for picture in pictures()]
    assert answers == pytest.approx(np.array(wanted), abs=1e-5)
    assert ((answers > 0) & (answers < 1)).all()
    assert min(answers.std(0).min(), answers.std(1).min()) > 1e-3  # pictures and questions decide
    assert "; 16 x 16, PIL's filter 3" in blip.told


def test_a_question_does_not_depend_on_others(files: dict[str, bytes], tmp_path: Path) -> None:
    blip, picture = Blip(written(files, tmp_path)), pictures()[1]
    whole = blip(picture, QUESTIONS)
    for order in ([2], [3, 0], [1, 2, 3, 0]):
        assert np.array_equal(blip(picture, [QUESTIONS[i] for i in order]), whole[order])


@pytest.mark.parametrize(
    "options", [{}, {"resample": 2}, {"image_mean": [0.5, 0.4, 0.3], "rescale_factor": 0.01}]
)
def test_pictures_are_prepared_as_by_its_processor(options: dict[str, Any], tmp_path: Path) -> None:
    own = blips.processor(**options)
    own.save_pretrained(tmp_path)
    prepared = Whole.read(tmp_path)
    for picture in pictures():
        wanted = torch.as_tensor(own(picture, return_tensors="pt")["pixel_values"][0])
        assert torch.allclose(prepared(picture), wanted.float(), atol=1e-5)


@pytest.mark.parametrize(
    ("phrase", "asked"),
    [
        ("A red book", "a red book?"),
        ('the "blue" (cup); 11:44.', "the blue cup 1144?"),
        (" ".join("abc" for _ in range(60)), " ".join("abc" for _ in range(50))),
    ],
)
def test_questions_by_hand(phrase: str, asked: str) -> None:
    assert question(phrase) == asked


@given(st.text(max_size=99))
def test_questions_are_clean_already(phrase: str) -> None:
    asked = question(phrase)
    assert not set(asked) & set('.!"()*#:;~')
    assert len(asked.split(" ")) <= 50
    assert asked.endswith("?") or len(phrase.split(" ")) >= 50


# --- folders that are none


def reweighted(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return write


def without_yes(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"yes"', '"oui"').replace('"no"', '"non"'))


def of_two_tokens(folder: Path) -> None:
    told = json.loads((folder / "tokenizer.json").read_text())
    told["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(told))


CONFIG, PREPARED, VISION, TEXT = "config.json", "preprocessor_config.json", "vision_config", "text_config"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoilt(CONFIG, model_type="clip"), "config.json must have the model_type blip, got 'clip'"),
        (spoilt(CONFIG, vision_config=3), "config.json must have a vision_config, got 3"),
        (spoilt(CONFIG, VISION, image_size=[16, 16]), "image_size of .*config.json must be a whole number"),
        (spoilt(CONFIG, VISION, image_size=4096), "image_size of .*config.json must be between 1 and 2048"),
        (spoilt(CONFIG, VISION, patch_size=0), "patch_size of .*config.json must be between 1 and 16, got 0"),
        (
            spoilt(CONFIG, VISION, image_size=1024, patch_size=8),
            "must make at most 4096 patches of a picture, got 16384",
        ),
        (spoilt(CONFIG, VISION, image_size=32), r"prepares pictures of \(16, 16\), but sees 32"),
        (
            spoilt(CONFIG, TEXT, bos_token_id=blips.ENC),
            "bos_token_id of .*config.json must be between 0 and 12",
        ),
        (spoilt(CONFIG, TEXT, bos_token_id=None), "bos_token_id of .*config.json must be"),
        (spoilt(CONFIG, TEXT, vocab_size=6), "must be between 0 and 4"),
        (spoilt(CONFIG, TEXT, num_hidden_layers=10**6), "more parts than its"),
        (
            spoilt(CONFIG, TEXT, hidden_size=10**5),
            "makes [0-9]+ numbers, but its weights are|mismatch|must be",
        ),
        (lambda folder: (folder / CONFIG).unlink(), CONFIG),
        (pickled, "must hold weights as .safetensors, but there are none"),
        (lambda folder: (folder / "model.safetensors").unlink(), "must hold weights as .safetensors"),
        (
            reweighted(lambda tensors: tensors.pop("vision_model.post_layernorm.weight")),
            "are not whole: vision_model.post_layernorm.weight is missing",
        ),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "cannot be opened as a BLIP|must tell yes from no",
        ),
        (without_yes, "the tokenizer of .* must tell yes from no"),
        (of_two_tokens, "must make 2 to 35 tokens|must make one token of 'yes'"),
        (lambda folder: (folder / PREPARED).unlink(), PREPARED),
        (spoilt(PREPARED, do_center_crop=True), "do_center_crop must be false, got True"),
        (
            spoilt(PREPARED, size={"shortest_edge": 16}),
            "must say how pictures are prepared: it lacks 'height'",
        ),
        (spoilt(PREPARED, size={"height": 16, "width": 10**6}), "size must be between 1 and 2048"),
        (lambda folder: os.mkfifo(folder / "vocab.txt"), "vocab.txt must be a plain file"),
    ],
)
def test_a_folder_that_is_none_is_told(
    spoil: Callable[[Path], Any], said: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    spoil(written(files, tmp_path))
    with pytest.raises((OSError, ValueError), match=rf"^[^\n]*({said})[^\n]*$"):
        Blip(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_told(value: float, files: dict[str, bytes], tmp_path: Path) -> None:
    reweighted(lambda tensors: tensors["vision_model.post_layernorm.weight"].fill_(value))(
        written(files, tmp_path)
    )
    blip = Blip(tmp_path)
    with pytest.raises(ValueError, match=r"^[^\n]* gives numbers that are not finite$"):
        blip(pictures()[0], QUESTIONS)


def test_a_tokenizer_of_other_numbers_is_told(files: dict[str, bytes], tmp_path: Path) -> None:
    file = written(files, tmp_path) / "tokenizer.json"
    file.write_text(file.read_text().replace('"cup": 9', '"cup": 99').replace('"cup":9', '"cup":99'))
    blip = Blip(tmp_path)
    with pytest.raises(
        ValueError, match=r"^[^\n]* must make 2 to 35 tokens below 14 of a question, got [^\n]*99"
    ):
        blip(pictures()[0], ["a cup?"])
