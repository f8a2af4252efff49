"""The video modality: puts the pieces of this folder behind the contract."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ditmoe.checkpoint import replacing
from ditmoe.modality import Modality, Report, Samples, Tokens
from modalities.codec import Codec
from modalities.sheet import lay_out, save_png
from modalities.video import sets, writer
from modalities.video.check import check
from modalities.video.data import Clips
from modalities.video.metric import evaluate_videos
from modalities.video.moving import MovingDigits
from modalities.video.view import enlarged, strip, view

FITTED_ON = 384
"""Training clips that the built-in autoencoder learns from."""


class Video(Modality):
    """Clips of one length, rate and size, generated as the latents of a codec.

    Args:
        data: makes the data set (`Clips`) for a size, a number of frames and a stride; where its root is None,
            `MovingDigits` takes its place. Called when data are first asked for.
        codec: makes the codec between clips and latents.
        tokens: makes the patchifier for a width, a number of channels, a stride and a rate.
        frames: T of a training clip.
        size: (H, W) in pixels.
        stride: between the frames of a video that a clip takes.
        rate: frames per second of a clip, as it is shown and as positions count time.
        images: share of the training batches that are clips of one frame.
        evaluation: options of `evaluate_videos`.
        facts: class names, shape of the latents and the codec from a checkpoint; None finds them from the data.
    """

    name: ClassVar[str] = "video"
    suffixes: ClassVar[tuple[str, ...]] = (*writer.SUFFIXES, ".avi", ".mov", ".webm")

    def __init__(
        self,
        data: partial[Clips],
        codec: Callable[[], Codec],
        tokens: Callable[..., Tokens],
        frames: int = 17,
        size: Sequence[int] = (32, 32),
        stride: int = 1,
        rate: float = 8.0,
        images: float = 0.0,
        evaluation: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"modality.size must be [height, width] in pixels, got {list(size)}")
        if min(frames, stride) < 1:
            raise ValueError(
                f"modality.frames and modality.stride must be at least 1, got {frames} and {stride}"
            )
        if not 0 <= images <= 1:
            raise ValueError(f"modality.images must lie in [0, 1], got {images}")
        self.size, self.frames, self.stride, self.rate, self.images = (
            tuple(size),
            frames,
            stride,
            rate,
            images,
        )
        self._make_data, self._make_codec, self._make_tokens = data, codec, tokens
        self._evaluation = dict(evaluation or {})
        self._facts = dict(facts) if facts else None

    @cached_property
    def data(self) -> Clips | MovingDigits:
        """The clips; read when first asked for."""
        if self._make_data.keywords.get("root") is None:
            return MovingDigits(self.size, self.frames, self.stride)
        return self._make_data(size=self.size, frames=self.frames, stride=self.stride)

    @cached_property
    def codec(self) -> Codec:
        """Between clips and latents: as the checkpoint has it, or fitted to some training clips."""
        codec = self._make_codec()
        shape = list(codec.shape((self.frames, *self.size)))
        if self._facts is None:
            batches = (self.data.batch(32, 0, step)[0] for step in range(FITTED_ON // 32))
            codec.fit([to_pixels(clips) for clips in batches])
        elif shape != self._facts["shape"]:
            raise ValueError(
                f"the codec's latents must be {self._facts['shape']} as the model's, got {shape}"
            )
        else:
            codec.restore(self._facts["codec"])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return codec.to(device).eval().requires_grad_(False)

    def facts(self) -> dict[str, Any]:
        if self._facts is None:
            codec = self.codec
            self._facts = {
                "classes": list(self.data.classes),
                "shape": list(codec.shape((self.frames, *self.size))),
                "stride": list(codec.stride),
                "codec": codec.learnt(),
            }
        return self._facts

    @property
    def classes(self) -> Sequence[str]:
        return self.facts()["classes"]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return tuple(self.facts()["shape"])

    def shape_of(self, frames: int | None = None, size: Sequence[int] | None = None) -> tuple[int, ...]:
        return self.codec.shape((frames or self.frames, *(size or self.size)))

    def tokens(self, hidden_size: int) -> Tokens:
        tokens = self._make_tokens(
            hidden_size=hidden_size,
            channels=self.sample_shape[0],
            stride=self.facts()["stride"],
            rate=self.rate,
        )
        x = torch.zeros(1, *self.sample_shape)
        tokens.patchify(x, tokens.layout(x))  # a size that does not divide should say so at once
        return tokens

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B L t h w"], Int[Tensor, " B"]]:
        clips, labels = self.data.batch(size, seed, step, rank, world)
        if self.images and np.random.default_rng([seed, step]).random() < self.images:
            clips = clips[:, :1]
        return self.encode(clips).cpu(), torch.from_numpy(labels)

    def encode(self, clips: UInt8[np.ndarray, "B T H W 3"]) -> Float[Tensor, "B L t h w"]:
        """Latents of clips, on the codec's device."""
        return self.codec.encode(to_pixels(clips).to(next(self.codec.buffers()).device))

    def decode(self, x: Float[Tensor, "S L t h w"], labels: Int[Tensor, " S"]) -> Samples:
        device = next(self.codec.buffers()).device
        parts = [to_clips(self.codec.decode(part.to(device))) for part in x.split(8)]
        names = [f"{self._class_name(label)}-{i:04d}" for i, label in enumerate(labels.tolist())]
        return Samples(np.concatenate(parts), labels.numpy(), names)

    def reference(self, split: str) -> Samples:
        return self.data.reference(split)

    def evaluate(self, generated: Samples, reference: Samples, train: Samples | None = None) -> Report:
        options = dict(self._evaluation)
        allowed = options.pop("lossy", False)
        for role, data in {"generated": generated, "reference": reference}.items():
            if not allowed and (lossy := getattr(data, "lossy", 0)):
                raise ValueError(
                    f"{lossy} of the {len(data)} {role} files may be lossy, and compression on one side alone costs as "
                    "much as models differ by: measure FFV1, PNG frames or npz, or say modality.evaluation.lossy=true"
                )
        autoencoder = None if self._facts is None else self.reconstruct
        return evaluate_videos(generated, reference, train, reconstruct=autoencoder, **options)

    def reconstruct(self, clip: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
        """A clip through the codec and back."""
        return self.decode(self.encode(clip[None]), torch.zeros(1, dtype=torch.long)).data[0]

    def read(self, path: Path) -> Samples:
        return sets.read_set(path)

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        """Per clip an MP4 to look at and a lossless MKV to measure, a GIF of all, and a sheet with frames of each; or
        one .npz (videos, labels), the sheet beside it.
        """
        if folder.suffix == ".npz":
            self.save_picture(samples, folder.with_suffix(".png"))
            labels = {} if samples.labels is None else {"labels": samples.labels}
            with replacing(folder) as stream:
                np.savez(stream, videos=samples.data, **labels)  # type: ignore[arg-type]
            return [folder.with_suffix(".png"), folder]
        sheet, paths = folder / "samples.png", []
        self.save_picture(samples, sheet)
        for clip, name in zip(samples.data, samples.names or map(str, range(len(samples))), strict=False):
            writer.write_mp4(folder / f"{name}.mp4", enlarged(clip), self.rate)
            writer.write_ffv1(folder / f"{name}.mkv", clip, self.rate)
            paths += [folder / f"{name}.mp4", folder / f"{name}.mkv"]
        return [sheet, self._save_animation(samples, folder / "samples.gif"), *paths]

    def save_picture(self, samples: Samples, file: Path) -> None:
        """A sheet of the first 40 clips, several frames of each in a row."""
        strips = [strip(clip) for clip in samples.data[:40]]
        save_png(file, lay_out(strips, self._names(samples)[: len(strips)]))

    @classmethod
    def view(cls, paths: Sequence[Path], out: Path | None = None) -> str:
        return view(paths, out)

    def prepare(self, source: Path, out: Path) -> None:
        """Decode every video once and write a manifest of what came of it."""
        check(source, out)

    def _save_animation(self, samples: Samples, file: Path) -> Path:
        names = self._names(samples)[:40]
        frames = zip(*(enlarged(clip) for clip in samples.data[:40]), strict=True)
        writer.write_gif(file, np.stack([lay_out(list(tiles), names) for tiles in frames]), self.rate)
        return file

    def _names(self, samples: Samples) -> list[str]:
        labels = [] if samples.labels is None else samples.labels.tolist()
        return [self._class_name(label) for label in labels] or [""] * len(samples)

    def _class_name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else "any"


def to_pixels(clips: UInt8[np.ndarray, "B T H W 3"]) -> Float[Tensor, "B 3 T H W"]:
    """8-bit clips as numbers in [-1, 1], channels first."""
    return torch.from_numpy(np.ascontiguousarray(clips)).movedim(-1, 1).float() / 127.5 - 1


def to_clips(x: Float[Tensor, "B 3 T H W"]) -> UInt8[np.ndarray, "B T H W 3"]:
    """The reverse: rounded, and cut off at black and white."""
    return (x.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu().numpy()
