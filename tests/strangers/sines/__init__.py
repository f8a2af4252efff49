"""A modality of a package that merely depends on ditmoe: sines of one to three periods, with files and a metric."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from ditmoe.modality import Files, Metric, Modality, Preparation, Report, Samples, Tokens
from ditmoe.nn import Layout


class Pieces(Tokens):
    """Pieces of a signal, channels first."""

    axes = 1

    def __init__(self, hidden_size: int, patch: int = 4) -> None:
        super().__init__()
        self.hidden_size, self.patch_size = hidden_size, (patch,)
        self.in_features = self.out_features = patch

    def grid(self, x: Float[Tensor, "B 1 L"]) -> tuple[int, ...]:
        if x.shape[-1] % self.patch_size[0]:
            raise ValueError(f"length must be a multiple of {self.patch_size[0]}, got {x.shape[-1]}")
        return (x.shape[-1] // self.patch_size[0],)

    def patchify(self, x: Float[Tensor, "B 1 L"], layout: Layout) -> Float[Tensor, "B N P"]:
        return x.reshape(len(x), -1, self.in_features)

    def positions(self, layout: Layout) -> Float[Tensor, "N D"]:
        angles = layout.cells.float() / torch.arange(1, self.hidden_size // 2 + 1)
        table = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return torch.nn.functional.pad(table, (0, self.hidden_size - table.shape[-1]))

    def unpatchify(
        self,
        tokens: Float[Tensor, "B N Q"],
        layout: Layout,
        like: Float[Tensor, "B 1 L"],
        t: Float[Tensor, " B"],
        c: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B 1 L"]:
        return tokens.reshape(like.shape)


class Sines(Modality, Files, Metric, Preparation):
    """Signals in [-1, 1]; a class is a number of periods."""

    name: ClassVar[str] = "sines"
    words: ClassVar[Mapping[str, str]] = {"length": "numbers of a signal"}
    suffixes: ClassVar[tuple[str, ...]] = (".sine",)
    opens: ClassVar[Sequence[str]] = ("root",)

    def __init__(
        self,
        tokens: Callable[..., Tokens],
        length: int = 32,
        root: str | None = None,
        data_facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.length, self.root, self._make_tokens = length, root, tokens
        self._facts = data_facts

    def data_facts(self) -> dict[str, Any]:
        if self._facts is None:
            spread = {"scale": torch.tensor([0.5, 0.25], dtype=torch.float64), "of": ("half", 2)}
            self._facts = {
                "classes": ("one", "two", "three"),
                "periods": [torch.tensor([1, 2, 3])],
                "x/y": spread,
            }
        return dict(self._facts)

    @property
    def classes(self) -> Sequence[str]:
        return self.data_facts()["classes"]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (1, self.length)

    def shape_of(self, length: int | None = None) -> tuple[int, ...]:
        return (1, self.length if length is None else length)

    def tokens(self, hidden_size: int) -> Tokens:
        return self._make_tokens(hidden_size=hidden_size)

    def signals(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(S, 1, L), of random phases."""
        periods = self.data_facts()["periods"][0].numpy()[labels][:, None, None]
        phases = rng.uniform(0, 2 * np.pi, (len(labels), 1, 1))
        return np.sin(2 * np.pi * periods * np.arange(self.length) / self.length + phases).astype(np.float32)

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B 1 L"], Int[Tensor, " B"]]:
        rng = np.random.default_rng([seed, step])
        labels = rng.integers(3, size=size * world)
        x = self.signals(labels, rng) / float(self.data_facts()["x/y"]["scale"][0])
        own = slice(rank * size, (rank + 1) * size)
        return torch.from_numpy(x[own]).float(), torch.from_numpy(labels[own])

    def decode(self, x: Float[Tensor, "S 1 L"]) -> Float[np.ndarray, "S 1 L"]:
        data = x.numpy() * float(self.data_facts()["x/y"]["scale"][0])
        return data

    def reference(self, split: str) -> Samples:
        rng = np.random.default_rng([7, len(split)])
        labels = np.arange(6) % 3
        return Samples(self.signals(labels, rng), labels)

    def evaluate(self, generated: Samples, reference: Samples, train: Samples | None = None) -> Report:
        values = {"power-gap": abs(float((generated.data**2).mean() - (reference.data**2).mean()))}
        return Report(values, {"generated": len(generated), "reference": len(reference)})

    def read(self, path: Path) -> Samples:
        if path.suffix == ".npz":
            with np.load(path) as stored:
                return Samples(stored["signals"])
        files = sorted(path.glob("*.sine")) if path.is_dir() else [path]
        return Samples(np.stack([np.loadtxt(file, ndmin=2) for file in files]).astype(np.float32))

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        if folder.suffix == ".npz":
            self.save_picture(samples, folder.with_suffix(".png"))
            np.savez(folder, signals=samples.data)
            return [folder.with_suffix(".png"), folder]
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.sine" for name in samples.file_names()]
        for path, signal in zip(paths, samples.data, strict=True):
            np.savetxt(path, signal)
        self.save_picture(samples, folder / "samples.png")
        return [folder / "samples.png", *paths]

    def save_picture(self, samples: Samples, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = np.clip(samples.data[:, 0] * 127 + 128, 0, 255).astype(np.uint8)
        Image.fromarray(rows).save(file)

    @classmethod
    def view(cls, paths: Sequence[Path], out: Path | None = None) -> str:
        return f"sines of {len(paths)} paths"

    def prepare(self, source: Path, out: Path, check: bool = False) -> None:
        print(f"{len(self.read(source))} signals")
