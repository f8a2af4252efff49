"""A tiny Mask2Former with random weights, sure of what it finds, and its processor, as transformers saves them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

CLASSES = ("bench", "dog", "mouse")
SWIN: dict[str, Any] = {
    "image_size": 32,
    "embed_dim": 8,
    "depths": [1] * 4,
    "num_heads": [1] * 4,
    "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
WIDTHS = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32)
LAYERS = {"encoder_feedforward_dim": 16, "dim_feedforward": 16, "encoder_layers": 1, "decoder_layers": 2}


def processor(**options: Any) -> Any:
    """Without torchvision, of which transformers makes its first choice."""
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    return Mask2FormerImageProcessorPil(**{"size": {"height": 64, "width": 64}, **options})


def mask2former() -> Any:
    import transformers

    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    backbone = transformers.SwinConfig(**SWIN)
    few = {"num_attention_heads": 2, "num_queries": 8}
    config = transformers.Mask2FormerConfig(backbone_config=backbone, **WIDTHS, **LAYERS, **few, **names)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    model.class_predictor.weight.data *= 30
    return model


def save(folder: Path) -> Path:
    for part in (mask2former(), processor()):
        part.save_pretrained(folder)
    return folder


def save_pictures(folder: Path, num: int, seed: int = 0) -> Path:
    """As `ditmoe.sample` names them."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number, picture in enumerate(rng.integers(0, 256, (num, 24, 32, 3), np.uint8)):
        Image.fromarray(picture).save(folder / f"sample-{number:04d}.png")
    return folder
