"""Data with captions, as small as they can be, and a text encoder that is drawn at random, for tests of text."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from ditmoe.conditioning import TEXT, Condition, text_rows
from ditmoe.modality import Asked, Captions, Samples
from ditmoe.text import MiniLM, Text
from modalities.pointcloud import PointCloud

SIZES = ("small", "large")
VOCABULARY = [
    *(
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "a",
        "small",
        "large",
        "chair",
        "table",
        "legs",
        "with",
        "three",
        "seven",
    ),
    *("##s", "##ing", "mov", "left", "up", "and", ",", "椅", "子", "cafe"),
]


class Captioned(PointCloud, Captions):
    """Clouds of which each is said to be small or large, by how far it reaches."""

    def __init__(self, *options: Any, captions: bool = False, **others: Any) -> None:
        super().__init__(*options, **others)
        self.says_sizes = captions  # in place of what `PointCloud` says of its shapes

    @property
    def caption_words(self) -> Sequence[str]:
        return ["a", *SIZES, *sorted({word for name in self.classes for word in name.lower().split()})]

    def captions_of_split(self, split: str) -> Iterable[str]:
        return (f"a {size} {name}" for name in self.classes for size in SIZES)

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B M 3"], Asked]:
        points, labels = super().batch(size, seed, step, rank, world)
        return points, self.told(points, labels) if self.says_sizes else labels

    def reference(self, split: str) -> Samples:
        real = super().reference(split)
        asked = self.told(torch.from_numpy(real.data), torch.from_numpy(real.labels))
        return replace(real, asked=asked if self.says_sizes else None)

    def told(self, points: Tensor, labels: Tensor) -> Condition:
        """What a batch is, as modalities with captions say it: the class, and a sentence."""
        large = (points.amax(1) - points.amin(1)).amax(1) > 2
        sizes = [SIZES[int(one)] for one in large]
        captions = [f"a {size} {self.classes[i]}" for size, i in zip(sizes, labels.tolist(), strict=True)]
        null = torch.zeros(len(labels), dtype=torch.bool)
        return Condition({"label": labels, TEXT: text_rows(captions)}, null)


def tiny_bert(folder: Path, seed: int = 0, width: int = 16, layers: int = 2) -> Path:
    """A folder as that of MiniLM, with weights drawn at random and few words."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 32, "model_type": "bert", "intermediate_size": 24}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(sizes))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    shapes = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), width),
        "embeddings.position_embeddings.weight": (32, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        **norm("embeddings.LayerNorm", width),
    }
    for layer in range(layers):
        name = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            shapes |= linear(f"{name}.attention.self.{part}", width, width)
        shapes |= linear(f"{name}.attention.output.dense", width, width)
        shapes |= linear(f"{name}.intermediate.dense", width, 24) | linear(f"{name}.output.dense", 24, width)
        shapes |= norm(f"{name}.attention.output.LayerNorm", width) | norm(f"{name}.output.LayerNorm", width)
    weights = {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    return folder


def linear(name: str, inner: int, outer: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def text(folder: Path, **options: Any) -> Text:
    """A conditioning of sentences, read by `tiny_bert`, with weights drawn at random."""
    encoder = partial(MiniLM, path=tiny_bert(folder / "bert"), limit=16)
    made = Text(hidden_size=24, num_classes=3, encoder=encoder, **options)
    with torch.no_grad():
        made.encoder.initialize()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter)
    return made


def asked(*captions: str) -> Condition:
    """What samples of these captions are asked for by."""
    return Condition({TEXT: text_rows(captions)}, torch.zeros(len(captions), dtype=torch.bool))
