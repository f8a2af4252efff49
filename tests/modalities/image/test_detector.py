"""A Mask2Former from a folder: what transformers itself makes of pictures, and folders that are none."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modalities.image.metrics.detector import Detector, Resizing
from tests.modalities.image import detectors
from tests.modalities.image.judged import pickled, spoilt, written

transformers = pytest.importorskip("transformers", reason="pip install 'ditmoe[transformers]'")
SIZES = ((32, 24), (17, 40), (64, 64), (8, 9), (45, 131))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = detectors.save(tmp_path_factory.mktemp("mask2former"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def expected(model: Any, picture: np.ndarray) -> list[tuple[str, float, np.ndarray]]:
    """Every pair of a query and a class, with its score and mask, from what transformers says."""
    x = detectors.processor()(picture, return_tensors="pt")
    with torch.no_grad():
        out = model(**x)
    masks = F.interpolate(out.masks_queries_logits, x["pixel_values"].shape[-2:], mode="bilinear")
    masks = F.interpolate(masks, picture.shape[:2], mode="bilinear")[0].double()
    chances = out.class_queries_logits[0].double().softmax(-1)
    inside = (masks > 0).double()
    sure = (masks.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    return [
        (name, float(chances[query, number] * sure[query]), inside[query].numpy() > 0)
        for query in range(len(masks))
        for number, name in enumerate(detectors.CLASSES)
    ]


def test_objects_are_those_that_transformers_sees(files: dict[str, bytes], tmp_path: Path) -> None:
    detector, model, num = Detector(written(files, tmp_path)), detectors.mask2former(), 0
    assert detector.classes == list(detectors.CLASSES)
    for picture in pictures():
        for above in (0.0, 0.3):
            whole = sorted(expected(model, picture), key=lambda each: -each[1])
            whole = [each for each in whole if each[1] > above]
            found = sorted(detector(picture, above), key=lambda each: -each.score)
            assert [each.name for each in found] == [name for name, _, _ in whole]
            for own, (_, score, mask) in zip(found, whole, strict=True):
                assert own.score == pytest.approx(score, abs=1e-4)
                assert (own.mask != mask).mean() < 0.01
                rows, columns = np.nonzero(own.mask)
                assert own.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            num += len(found)
    assert num > 20


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": {"shortest_edge": 50, "longest_edge": 80}},
        {"size": {"shortest_edge": 50, "longest_edge": 80}, "size_divisor": 0},
        {"size": {"shortest_edge": 40, "longest_edge": 41}, "size_divisor": 1, "resample": 3},
        {"size": {"height": 33, "width": 65}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
        {"size_divisor": 48, "rescale_factor": 0.01},
    ],
)
def test_pictures_are_prepared_as_by_its_processor(options: dict[str, Any], tmp_path: Path) -> None:
    own = detectors.processor(**options)
    own.save_pretrained(tmp_path)
    prepared = Resizing.read(tmp_path)
    for picture in pictures():
        wanted = torch.as_tensor(own(picture, return_tensors="pt")["pixel_values"][0])
        made = prepared(picture)
        assert made.shape == wanted.shape
        assert torch.allclose(made, wanted.float(), atol=1e-5)


def test_sizes_are_rounded_as_by_its_processor() -> None:
    from transformers.image_transforms import get_size_with_aspect_ratio

    rng = np.random.default_rng(0)
    for shortest, longest in ((800, 1333), (50, 60), (384, 384)):
        prepared = Resizing(shortest, None, 2, 1.0, [0] * 3, [1] * 3, longest)
        cases = [
            *rng.integers(1, 2000, (300, 2)).tolist(),
            [600, 1334],
            [shortest, longest],
            [longest, shortest],
        ]
        for height, width in cases:
            wanted = get_size_with_aspect_ratio((height, width), shortest, longest)
            assert prepared.shape(height, width) == tuple(max(1, side) for side in wanted)


# --- folders that are none


def without_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["class_predictor.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_weights_of_training_alone_may_lack(files: dict[str, bytes], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = written(files, tmp_path) / "model.safetensors"
    tensors = load_file(file)
    kept = {name: x for name, x in tensors.items() if not name.startswith("criterion.")}
    assert len(kept) == len(tensors) - 1
    save_file(kept, file, {"format": "pt"})
    assert Detector(tmp_path).classes == list(detectors.CLASSES)


CONFIG, PREPARED, WITHIN = "config.json", "preprocessor_config.json", "backbone_config"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoilt(CONFIG, model_type="detr"), "config.json must have the model_type mask2former, got 'detr'"),
        (
            spoilt(CONFIG, backbone="someone/swin"),
            "must have its backbone as backbone_config, and none by name",
        ),
        (spoilt(CONFIG, backbone_config=None), "must have its backbone as backbone_config"),
        (spoilt(CONFIG, WITHIN, model_type="resnet"), "must have a swin as its backbone, got 'resnet'"),
        (spoilt(CONFIG, WITHIN, patch_size=1), "patch_size of .*config.json must be between 4 and 32, got 1"),
        (
            spoilt(CONFIG, WITHIN, window_size=4096),
            "window_size of .*config.json must be between 1 and 24, got 4096",
        ),
        (spoilt(CONFIG, WITHIN, embed_dim=10**5), "makes [0-9]+ numbers, but its weights are|mismatch"),
        (spoilt(CONFIG, decoder_layers=10**6), "more parts than its"),
        (spoilt(CONFIG, id2label={"0": "dog"}), "class_predictor.bias is .4., must be .2."),
        (lambda folder: (folder / CONFIG).unlink(), CONFIG),
        (pickled, "must hold weights as .safetensors, but there are none"),
        (without_a_tensor, "are not whole: class_predictor.weight is missing"),
        (lambda folder: (folder / PREPARED).unlink(), PREPARED),
        (spoilt(PREPARED, image_mean=[1]), r"image_mean must be three numbers, got \[1\]"),
        (
            spoilt(PREPARED, size={"shortest_edge": 10**6, "longest_edge": 9}),
            "shortest_edge must be between 1 and",
        ),
        (
            spoilt(PREPARED, size={"shortest_edge": 64}),
            "must say how pictures are prepared: it lacks 'longest_edge'",
        ),
        (spoilt(PREPARED, size={"height": 0, "width": 9}), "size must be between 1 and 2048, got 0"),
        (spoilt(PREPARED, size_divisor=10**6), "size_divisor must be between 0 and 256, got 1000000"),
        (spoilt(PREPARED, pad_size={"height": 9, "width": 9}), "pad_size must be null, got"),
        (spoilt(PREPARED, do_resize=False), "do_resize must be true, got False"),
        (lambda folder: os.mkfifo(folder / "vocab.txt"), "vocab.txt must be a plain file"),
    ],
)
def test_a_folder_that_is_none_is_told(
    spoil: Callable[[Path], Any], said: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    spoil(written(files, tmp_path))
    with pytest.raises((OSError, ValueError), match=rf"^[^\n]*({said})[^\n]*$"):
        Detector(tmp_path)
