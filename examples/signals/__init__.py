"""The smallest useful modality of your own: periodic signals, with files, pictures and a metric.

`Pieces` cuts a signal into tokens. `Signals` has the data and implements three contracts of `ditmoe.modality`:
`Modality` (for training), `Files` (sample, view) and `Metric` (evaluate). docs/extending.md explains it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from ditmoe.checkpoint import replacing
from ditmoe.modality import Files, Metric, Modality, Report, Samples, Tokens, check_number
from ditmoe.nn import Layout
from ditmoe.outside import Arrays, files_below, printable
from modalities.latent.tokens import PatchTokens
from modalities.shared import lay_out, save_png, save_sheet, sincos
from modalities.shared.confidence import wilson
from modalities.shared.frechet import halves, jackknife, squared_distances

PARTIALS = np.arange(1, 9)  # harmonics of a wave
ODD = PARTIALS % 2
WAVES = {  # class -> amplitude of each partial: a truncated Fourier series
    "sine": (PARTIALS == 1).astype(float),
    "triangle": ODD * (-1.0) ** (PARTIALS // 2) / PARTIALS**2,
    "square": ODD / PARTIALS,
    "sawtooth": (-1.0) ** (PARTIALS + 1) / PARTIALS,
}
SPLITS = {"train": 128, "val": 64, "test": 128}  # signals in each reference set


class Pieces(PatchTokens):
    """Cuts a signal into patches of `patch` values and reassembles predictions, as for image latents.

    For another kind of tokens, implement their values and positions: `ditmoe.modality.Tokens`.
    """

    axes = 1

    def __init__(self, hidden_size: int, patch: int) -> None:
        check_number("patch", patch, 1, whole=True)
        super().__init__(hidden_size, patch_size=[patch], steps=[1.0])
        self.in_features = self.out_features = patch

    def positions(self, layout: Layout) -> Float[Tensor, "N D"]:
        return sincos(layout.cells, self.hidden_size)


class Signals(Modality, Files, Metric):
    """Waves of one to three periods, random phase and amplitude; a class is a waveform.

    Its YAML sets `tokens`, which makes the patchifier, and the `length` L in training; `data_facts` come from a
    checkpoint, or are None in a new run.
    """

    name: ClassVar[str] = "signals"
    words: ClassVar[Mapping[str, str]] = {"length": "numbers of a signal"}
    suffixes: ClassVar[tuple[str, ...]] = (".signal",)

    def __init__(
        self, tokens: Callable[..., Tokens], length: int = 64, data_facts: Mapping[str, Any] | None = None
    ) -> None:
        check_number("length", length, 1, whole=True)
        self.make_tokens, self.length, self._facts = tokens, length, data_facts

    def data_facts(self) -> dict[str, Any]:
        """Classes, and the standard deviation of the training data: determined once, and kept with a model."""
        if self._facts is None:
            std = torch.tensor(self.reference("train").data.std(), dtype=torch.float64)
            self._facts = {"classes": list(WAVES), "std": std}
        return dict(self._facts)

    @property
    def classes(self) -> Sequence[str]:
        return self.data_facts()["classes"]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (1, self.length)

    def shape_of(self, length: int | None = None) -> tuple[int, ...]:
        """`length=` of sample and the pipeline; any other word is refused in one line."""
        return (1, self.length if length is None else length)

    def tokens(self, hidden_size: int) -> Tokens:
        return self.make_tokens(hidden_size=hidden_size)

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B 1 L"], Int[Tensor, " B"]]:
        # Every rank draws the whole batch of the step and takes its rows, so runs resume on any number of ranks.
        rng = np.random.default_rng([seed, step])
        labels = rng.integers(len(WAVES), size=size * world)
        rows = slice(rank * size, (rank + 1) * size)
        x = self.waves(labels, rng)[rows] / float(self.data_facts()["std"])
        return torch.from_numpy(x).float(), torch.from_numpy(labels[rows])

    def waves(self, labels: np.ndarray, rng: np.random.Generator) -> Float[np.ndarray, "S 1 L"]:
        """Σ_n a_n sin(n (2π k x + φ)), a the class's row of WAVES: 1 to 3 periods k, any phase φ; then an amplitude."""
        shape = len(labels), 1, 1
        periods, phase = rng.integers(1, 4, shape), rng.uniform(0, 2 * np.pi, shape)
        angle = 2 * np.pi * periods * np.arange(self.length) / self.length + phase
        series = np.array(list(WAVES.values()))[labels][:, None]
        return rng.uniform(0.5, 1, shape) * (series @ np.sin(PARTIALS[:, None] * angle))

    def decode(self, x: Float[Tensor, "S 1 L"]) -> Float[np.ndarray, "S 1 L"]:
        return x.numpy() * float(self.data_facts()["std"])

    # --- evaluation: Metric

    def reference(self, split: str) -> Samples:
        """A fixed set of signals that are in no batch, equally many per class."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        labels = np.arange(SPLITS[split]) % len(WAVES)
        return Samples(self.waves(labels, np.random.default_rng([list(SPLITS).index(split)])), labels)

    def evaluate(self, generated: Samples, reference: Samples, train: Samples | None = None) -> Report:
        """Fréchet distance of amplitude spectra, and how often the nearest real one has the requested class."""
        a, b = spectra(generated), spectra(reference)
        if a.shape[1] != b.shape[1]:
            raise ValueError(f"both sets must be as long, got {a.shape[1]} and {b.shape[1]} amplitudes")
        distance = jackknife(a, b)  # leaving signals out in turn gives its error
        values = {"fd/spectra": distance.value}
        intervals = {"fd/spectra": distance.interval(low=0)} if np.isfinite(distance.error) else {}
        if generated.labels is not None and reference.labels is not None:
            nearest = np.concatenate([part.argmin(axis=1) for part in squared_distances(a, b)])
            values["classes/agreement"] = float((reference.labels[nearest] == generated.labels).mean())
            intervals["classes/agreement"] = wilson(values["classes/agreement"], len(a))
        rows = {}  # scores of real signals against real ones, for scale
        if len(b) >= 4:
            one, other = halves(len(b))
            rows["floor"] = {"fd/spectra": jackknife(b[one], b[other], groups=0).value}
        if train is not None:
            rows["oracle"] = {"fd/spectra": jackknife(spectra(train)[: len(a)], b, groups=0).value}
        protocol = {"generated": len(a), "reference": len(b), "features": f"{a.shape[1]} amplitudes"}
        return Report(values, protocol, intervals, rows)

    # --- files and pictures: Files

    def read(self, path: Path) -> Samples:
        return read(path)

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        if folder.suffix == ".npz":
            self.save_picture(samples, folder.with_suffix(".png"))
            labels = {} if samples.labels is None else {"labels": samples.labels}
            with replacing(folder) as stream:  # atomic
                np.savez(stream, signals=samples.data, **labels)
            return [folder.with_suffix(".png"), folder]
        self.save_picture(samples, folder / "samples.png")  # creates the folder
        paths = [folder / f"{name}.signal" for name in samples.file_names()]
        for path, signal in zip(paths, samples.data, strict=True):
            with replacing(path) as stream:
                np.savetxt(stream, signal.T, "%.6g")
        return [folder / "samples.png", *paths]

    def save_picture(self, samples: Samples, file: Path) -> None:
        save_png(file, lay_out([drawn(signal[0]) for signal in samples.data], samples.file_names()))

    @classmethod
    def view(cls, paths: Sequence[Path], out: Path | None = None) -> str:
        sets = [read(path) for path in paths]
        tiles = [drawn(signal[0]) for one in sets for signal in one.data]
        names = [printable(name) for one in sets for name in one.file_names()]
        beside = (paths[0] if paths[0].is_dir() else paths[0].parent) / "view.png"
        return f"{len(tiles)} signals on {printable(save_sheet(lay_out(tiles, names), out, beside))}"


def read(path: Path) -> Samples:
    """A .npz (signals, labels), a .signal of one signal, or a folder of such .signal files of one length."""
    if path.suffix == ".npz":
        with Arrays(path) as arrays:  # checks what a file declares before allocating arrays
            if "signals" not in arrays:
                raise ValueError(f"{printable(path)} must hold an array signals")
            return Samples(arrays["signals"], arrays.get("labels"))
    files = [f for f in files_below(path) if f.suffix == ".signal"] if path.is_dir() else [path]
    signals = [np.loadtxt(file, ndmin=2).T for file in files]
    if len({signal.shape for signal in signals}) != 1:
        raise ValueError(f"{printable(path)} must hold .signal files of one length, got {len(files)} files")
    return Samples(np.stack(signals), names=[file.stem for file in files])


def spectra(samples: Samples) -> Float[np.ndarray, "S F"]:
    """Amplitude of each frequency except zero, independent of the phase."""
    return 2 / samples.data.shape[-1] * np.abs(np.fft.rfft(samples.data[:, 0]))[:, 1:]


def drawn(signal: Float[np.ndarray, " L"], width: int = 96, height: int = 64) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a signal as a line, from -2 at the bottom of the picture to 2 at the top."""
    tile = Image.new("RGB", (width, height), (243, 244, 247))
    across, up = np.linspace(2, width - 3, len(signal)), np.clip(height / 2 * (1 - signal / 2), 1, height - 2)
    ImageDraw.Draw(tile).line(list(zip(across.tolist(), up.tolist(), strict=True)), (40, 90, 160), 2)
    return np.asarray(tile)
