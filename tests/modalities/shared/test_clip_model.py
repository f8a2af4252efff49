"""A CLIP from a folder: what transformers itself says of pictures and captions, and folders that are none."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.inference import evaluate_checkpoint, evaluate_files, sample_checkpoint
from ditmoe.train import make_trainer
from modalities.shared import clip_score
from modalities.shared.clip_model import Clip, Preprocessing
from tests.warm import command

transformers = pytest.importorskip("transformers", reason="pip install 'ditmoe[transformers]'")
pytest.importorskip("tokenizers")

WORDS = ["<s>", "</s>", "<unk>", "a", "three", "seven", "moving", "left", "up", "thick"]
CAPTIONS = ["a three moving left", "a seven", "a three moving up and up and up and up", "an eight"]
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    "vocab_size": 10,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def processor(**options: Any) -> Any:
    """Without torchvision, of which transformers makes its first choice."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(**{"size": {"shortest_edge": 16}, "crop_size": 16, **options})


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 1)]
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def tiny_clip() -> Any:
    torch.manual_seed(0)
    vision = {**TOWER, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config={**TOWER, **TEXT}, vision_config=vision, projection_dim=8)
    return transformers.CLIPModel(config).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_clip()


@pytest.fixture(scope="module")
def files(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("clip")
    for part in (model, processor(), tokenizer()):
        part.save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def written(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


SIZES = ((32, 24), (17, 40), (16, 16), (8, 9), (45, 31))


def test_it_is_what_transformers_says(model: Any, files: dict[str, bytes], tmp_path: Path) -> None:
    clip, some = Clip(written(files, tmp_path)), pictures(*SIZES)
    cosines = clip.of_pictures(some) @ clip.of_captions(CAPTIONS).T
    text = tokenizer()(CAPTIONS, padding=True, truncation=True, max_length=8, return_tensors="pt")
    words = {name: text[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        out = model(pixel_values=processor()(some, return_tensors="pt")["pixel_values"], **words)
    expected = out.logits_per_image / model.logit_scale.exp()
    assert np.allclose(cosines, expected.detach().numpy(), atol=1e-5)
    assert [clip.is_cut(caption) for caption in CAPTIONS] == [False, False, True, False]
    assert clip.limit == 8
    assert clip.name == tmp_path.name


def test_batches_do_not_matter(files: dict[str, bytes], tmp_path: Path) -> None:
    clip, some = Clip(written(files, tmp_path)), pictures(*SIZES)
    for batch in (1, 2, 32):
        assert np.allclose(clip.of_pictures(some, batch), clip.of_pictures(some), atol=1e-6)
        assert np.allclose(
            clip.of_captions(CAPTIONS, batch), clip.of_captions(CAPTIONS[::-1])[::-1], atol=1e-6
        )
    assert clip.of_pictures([]).shape == (0, 8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": {"shortest_edge": 21}, "crop_size": {"height": 16, "width": 16}},
        {"size": {"height": 16, "width": 16}, "do_center_crop": False, "resample": 2},
        {"size": {"height": 20, "width": 24}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
        {"size": {"shortest_edge": 12}, "rescale_factor": 0.01},
    ],
)
def test_pictures_are_prepared_as_by_its_processor(options: dict[str, Any], tmp_path: Path) -> None:
    own = processor(**options)
    own.save_pretrained(tmp_path)
    prepared = Preprocessing.read(tmp_path)
    for picture in pictures(*SIZES):
        expected = own(picture, return_tensors="pt")["pixel_values"][0]
        assert torch.allclose(prepared(picture), expected, atol=1e-5)


def test_settings_of_a_whole_processor_are_read(files: dict[str, bytes], tmp_path: Path) -> None:
    expected = Preprocessing.read(written(files, tmp_path / "one"))
    transformers.CLIPProcessor(processor(), tokenizer()).save_pretrained(tmp_path / "two")
    assert Preprocessing.read(tmp_path / "two") == expected


# --- folders that are none


def spoilt(name: str, **more: Any) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        told = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(told | more))

    return write


def without_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def removed(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


PREPARED = "preprocessor_config.json"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoilt("config.json", model_type="t5"), "must have the model_type clip, got 't5'"),
        (
            spoilt("config.json", projection_dim=10**6),
            "makes [0-9]+ numbers, but its weights are|must be \\[1000000, 16\\]",
        ),
        (removed("config.json"), "config.json"),
        (pickled, "must hold weights as .safetensors, but there are none"),
        (without_a_tensor, "are not whole: visual_projection.weight is missing"),
        (removed("tokenizer.json"), "cannot be opened as a CLIP"),
        (removed(PREPARED), f"{PREPARED}"),
        (spoilt(PREPARED, image_mean=[1]), r"image_mean must be three numbers, got \[1\]"),
        (spoilt(PREPARED, image_std=[1, 1, 0]), "image_std must be .*above 0, got 0"),
        (spoilt(PREPARED, size={"shortest_edge": 10**6}), "size must be between 1 and 2048, got 1000000"),
        (spoilt(PREPARED, size=None), "must say how pictures are prepared: size must be"),
        (spoilt(PREPARED, do_resize=False), "do_resize must be true, got False"),
        (spoilt(PREPARED, resample=9), "resample must be between 0 and 5, got 9"),
        (spoilt(PREPARED, crop_size={"height": 9}), "must say how pictures are prepared: it lacks 'width'"),
        (spoilt(PREPARED, crop_size=9), r"prepares pictures of \(9, 9\), but sees 16"),
        (lambda folder: os.mkfifo(folder / "vocab.txt"), "vocab.txt must be a plain file"),
    ],
)
def test_a_folder_that_is_no_clip_is_told(
    spoil: Callable[[Path], Any], said: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    spoil(written(files, tmp_path))
    start = "^modality.evaluation.clip must be a CLIP of transformers, a folder with CLIPModel in safetensors"
    with pytest.raises(ValueError, match=rf"{start}[^\n]*({said})[^\n]*$"):
        clip_score.opened(tmp_path, ["a three"])


def test_a_path_to_nothing_is_told() -> None:
    with pytest.raises(
        ValueError, match=r"^modality.evaluation.clip must be [^\n]*no/such/clip is no folder, and cannot"
    ):
        clip_score.opened("no/such/clip", ["a three"])


def test_a_tokenizer_of_another_model_is_told(files: dict[str, bytes], tmp_path: Path) -> None:
    rules = json.loads(files["tokenizer.json"])
    for spoil in (
        {"post_processor": None},
        {"model": rules["model"] | {"vocab": {**rules["model"]["vocab"], "a": 99}}},
    ):
        written(files, tmp_path)
        (tmp_path / "tokenizer.json").write_text(json.dumps(rules | spoil))
        with pytest.raises(
            ValueError, match=r"^the tokenizer of [^\n]* must make 1 to 8 tokens below 10 of a caption"
        ):
            Clip(tmp_path).of_captions(["a three"])


# --- the commands

TINY = [
    "model=debug", "trainer.batch_size=4", "trainer.steps=2", "trainer.preview_every=0", "sampling.steps=2",
    "modality.size=[16,16]", "modality.evaluation.cache=null", "optimizer.lr=0.001",
]  # fmt: skip
LEARNED = ["conditioning=text", "encoder@conditioning.encoder=learned"]


def measured_by(clip: Path, modality: str = "image") -> dict[str, Any]:
    words = [f"modality={modality}", f"modality.evaluation.clip={clip}", "modality.evaluation.cache=null"]
    return composed("evaluate", words)["modality"]


def test_a_run_with_text_is_scored(files: dict[str, bytes], tmp_path: Path) -> None:
    clip = written(files, tmp_path / "clip")
    settings = composed("train", ["modality=image", *LEARNED, *TINY])
    make_trainer(settings, build.make_modality(settings), tmp_path / "run").run()
    option = measured_by(clip)
    report = evaluate_checkpoint(tmp_path / "run", modality=option, num=6, steps=2)
    assert report is not None
    low, high = report.intervals["clip_score"]
    assert 0 <= low <= report.values["clip_score"] <= high <= 100
    assert {"other prompts", "held-out"} <= set(report.rows)
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert told["clip_score"] == pytest.approx(report.values["clip_score"])
    assert told["protocol"]["clip"].startswith("clip, SHA-256 ")
    # Files of the same samples have the same score.
    sample_checkpoint(tmp_path / "run", num=6, steps=2, out=tmp_path / "drawn")
    files_report = evaluate_files(option, str(tmp_path / "drawn"), str(tmp_path / "drawn"), out=tmp_path)
    assert files_report.values["clip_score"] == pytest.approx(report.values["clip_score"], abs=1e-4)
    assert files_report.rows["held-out"]["clip_score"] == files_report.values["clip_score"]


def test_a_model_without_text_is_refused_before_it_draws(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even of data with captions, by which a model of classes is not told what to draw."""
    settings = composed("train", ["modality=image", "modality.captions=true", *TINY])
    make_trainer(settings, build.make_modality(settings), tmp_path / "run").run()
    monkeypatch.setattr("ditmoe.inference.measuring.draw_from", lambda *_, **__: pytest.fail("it drew"))
    option = measured_by(written(files, tmp_path / "clip"))
    with pytest.raises(
        ValueError, match=r"^modality.evaluation.clip scores samples by their prompts, .*none are known"
    ):
        evaluate_checkpoint(tmp_path / "run", modality=option, steps=2)


def test_training_asks_for_text_at_once(files: dict[str, bytes], tmp_path: Path) -> None:
    clip = f"modality.evaluation.clip={written(files, tmp_path / 'clip')}"
    for modality in ("image", "video"):
        build.make_modality(composed("train", [f"modality={modality}", *LEARNED, clip])).check_evaluation()
        with pytest.raises(ValueError, match="scores samples by their prompts"):
            build.make_modality(composed("train", [f"modality={modality}", clip])).check_evaluation()


def test_clips_are_scored_by_their_frames(files: dict[str, bytes], tmp_path: Path) -> None:
    option = measured_by(written(files, tmp_path / "clip"), "video")
    sets = {**option, "size": [16, 16], "frames": 16, "captions": True}
    video = build.make_modality({"modality": sets})
    real = video.reference("test")
    small = type(real)(real.data[:6], None, real.names[:6], real.asked.take(slice(6)))
    report = video.evaluate(small, small)
    assert report.protocol["clip pictures"].startswith(
        "4 evenly spaced frames of each clip, the mean of theirs; "
    )
    own = report.values["clip_score"]
    assert report.rows["held-out"]["clip_score"] == pytest.approx(own)
    assert "flicker" in report.rows["held-out"]
    prompts = clip_score.prompts_of(small)
    clip = Clip(tmp_path / "clip")
    seen = clip.of_pictures(small.data[:, ::5].reshape(-1, 16, 16, 3)).reshape(6, 4, -1)
    cosines = np.einsum("sfw, sw -> sf", seen, clip.of_captions(prompts))
    assert own == pytest.approx(100 * cosines.clip(0).mean(), abs=1e-3)


def test_the_command_says_what_it_measured(files: dict[str, bytes], tmp_path: Path) -> None:
    clip = written(files, tmp_path / "clip")
    for name in "ab":
        (tmp_path / name).mkdir()
        for number, picture in enumerate(pictures(*[(16, 16)] * 4)):
            Image.fromarray(picture).save(tmp_path / name / f"sample-{number:04d}.png")
    (tmp_path / "a" / "prompts.json").write_text(json.dumps({"prompts": CAPTIONS}))
    words = ("modality=image", f"modality.evaluation.clip={clip}", "generated=a", "reference=b")
    ran = command("ditmoe.evaluate", *words, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "clip_score" in ran.stdout
    assert "note: 1 of 4 prompts have more than the 8 tokens that this CLIP reads" in ran.stdout
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert set(told["other prompts"]) == {"clip_score"}
    assert "held-out" not in told  # the reference has no captions
    (clip / "model.safetensors").rename(clip / "pytorch_model.bin")
    ran = command("ditmoe.evaluate", *words, cwd=tmp_path)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "must hold weights as .safetensors" in ran.stderr
