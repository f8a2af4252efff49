"""The video modality: implements the `Modality` interface with the modules of this folder."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from ditmoe.given import Parts
from ditmoe.modality import CodecTraining, Report, Samples, Shown, Tokens, check_options
from ditmoe.outside import TooFewError, check_number, printable, real_path
from ditmoe.outside import device as own_device
from modalities.latent import Codec
from modalities.shared import clip_score, lay_out, save_png
from modalities.shared.understood import check_enough
from modalities.video import given as given_parts
from modalities.video.clip_modality import ClipModality
from modalities.video.codec import Autoencoder, CausalPatches, training
from modalities.video.data import Clips, MovingDigits, clip_folders
from modalities.video.data.check import check as check_videos
from modalities.video.data.latent_source import source_of
from modalities.video.io import writer
from modalities.video.io.writer import write_animation, write_clip
from modalities.video.metrics.clip_sets import FRAMES, spaced
from modalities.video.metrics.evaluation import choose, evaluate_videos
from modalities.video.metrics.warnings import check_lossless
from modalities.video.view import show_one, strip, view

MOST_STRIDE = 65_536
"""Largest stride of a clip: an hour at 18 frames per second."""


class Video(ClipModality, CodecTraining):
    """Videos, generated as the latents of a codec.

    Args:
        data: makes the data set (`Clips`), given a size, a number of frames and a stride; called on first use of the
            data. If its root is None, the data are `MovingDigits`.
        codec: makes the codec between clips and latents.
        tokens: makes the patchifier, given a width, a number of channels, a stride and a rate.
        frames: T of a training clip.
        size: (H, W) in pixels.
        stride: a clip takes every `stride`-th frame of a video.
        resample: "nearest" instead takes the frames nearest to multiples of 1 / `rate`, so that all clips have the same
            frame rate.
        rate: frames per second of a clip, for playback and for temporal positions.
        images: fraction of the training batches that are images (clips of one frame).
        pictures: makes the data set of these images (`modalities.image.Pictures`), given a size; if its root is None,
            they are first frames of clips.
        merge: give images the classes of the videos, matched by name, and new ones for other names; otherwise images
            have no class (the null class).
        latents: a folder written by `prepare`; training then neither reads nor encodes videos.
        native: train on clips and images at native lengths, sizes and proportions, up to `frames` and the area of
            `size`; `images` is then ignored, and every image of `pictures.root` is used.
        budget: with `native`, the most tokens of a packed row.
        rows: with `native`, packed rows in a batch, over all processes.
        evaluation: options of `evaluate_videos`, and "clip": the CLIP of `clip_score`.
        preparation: options of `latent_writer.prepare`, and "starts": clips per video, spread evenly over it.
        data_facts: class names, latent shape and fitted codec, from a checkpoint; None takes them from the data.
        captions: condition on captions as well as classes.
    """

    name: ClassVar[str] = "video"
    words: ClassVar[Mapping[str, str]] = {"frames": "of a clip", "size": "[height, width] in pixels"}
    given_files = ("mask",)
    given_words, given_per = given_parts.WORDS, {"frame": 0.8, "token": 0.2}
    suffixes: ClassVar[tuple[str, ...]] = (*writer.SUFFIXES, ".avi", ".mov", ".webm")
    opens: ClassVar[Sequence[str]] = ("latents", "evaluation.cache", "evaluation.weights", "evaluation.clip")
    published, autoencoders = Autoencoder, Autoencoder.known
    decoded_at_once = 8
    arrays = ("videos", "labels")

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
        pictures: partial[Any] | None = None,
        merge: bool = True,
        latents: str | PathLike | None = None,
        native: bool = False,
        budget: int = 2048,
        rows: int = 1,
        evaluation: Mapping[str, Any] | None = None,
        preparation: Mapping[str, Any] | None = None,
        data_facts: Mapping[str, Any] | None = None,
        resample: str | None = None,
        captions: bool = False,
    ) -> None:
        if min(frames, stride) < 1:
            raise ValueError(
                f"modality.frames and modality.stride must be at least 1, got {frames} and {stride}"
            )
        check_number("modality.stride", stride, 1, MOST_STRIDE, whole=True)
        check_number("modality.rate", rate, 0.01, 1000)
        if not 0 <= images <= 1:
            raise ValueError(f"modality.images must lie in [0, 1], got {images}")
        if not images and not native and pictures is not None and pictures.keywords.get("root") is not None:
            raise ValueError(
                "modality.images, the share of pictures, must be above 0 to train on pictures.root"
            )
        super().__init__(codec, tokens, size, latents, native, budget, rows, data_facts, captions)
        self.frames, self.stride, self.rate = frames, stride, rate
        self.images, self.merge, self.resample = images, merge, resample
        self._make_data, self._make_pictures = data, pictures
        self._evaluation, self._preparation = dict(evaluation or {}), dict(preparation or {})
        self._clip = clip_score.option(self._evaluation)
        kept = {name: value for name, value in self._evaluation.items() if name != "lossy"}
        check_options("modality.evaluation", evaluate_videos, kept)

    def check_prompts(self, prompts: Sequence[str] | None) -> None:
        clip_score.opened(self._clip, prompts)

    def check_evaluation(self, split: str = "test") -> None:
        clip_score.check_training(self._clip, self.captions)
        if isinstance(self.data, Clips):
            check_enough(self.data.count(split), split, "clips")
        span = choose(**self._evaluation)[0].span
        if self.frames < span:
            raise TooFewError(
                f"modality.evaluation.frames and stride take {span} frames of a clip, generated ones have {self.frames}"
            )

    def evaluate(self, generated: Samples, reference: Samples, train: Samples | None = None) -> Report:
        clip = clip_score.opened(self._clip, clip_score.prompts_of(generated))
        options = dict(self._evaluation)
        if not options.pop("lossy", False):
            check_lossless(generated, reference)
        autoencoder = None if self._facts is None else self.reconstruct
        if options.get("digits") is None and self._facts is not None and self._moves_digits:
            options["digits"] = self.data.side  # type: ignore[union-attr]
        report = evaluate_videos(generated, reference, train, reconstruct=autoencoder, **options)
        shown = f"{FRAMES} evenly spaced frames of each clip, the mean of theirs"
        return clip_score.added(report, clip, generated, reference, spaced, shown)

    @property
    def _moves_digits(self) -> bool:
        """Whether the data are the built-in clips, at the stride for which their laws are measured."""
        folder = self._make_data.keywords.get("root") is not None or self._latents is not None
        return not folder and self.stride == 1 and isinstance(self.data, MovingDigits)

    def reconstruct(self, clip: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
        """Encode and decode a clip."""
        return self.decode(self.encode(clip[None]))[0]

    def parts(  # type: ignore[override]
        self,
        given: Any,
        *,
        shape: Mapping[str, Any],
        told: bool,
        strength: float | None = None,
        keep: Any = None,
        between: int | None = None,
        loop: int | None = None,
        mask: Any = None,
    ) -> Parts:
        """Extend a clip forwards or backwards, loop or inpaint it, connect two clips, or animate an image."""
        return given_parts.parts(self, given, shape, strength, keep, between, loop, mask)

    def read(self, path: Path) -> Samples:
        return clip_score.with_prompts(self._clip, clip_folders.read_set(path), path)

    def write_each(self, samples: Samples, folder: Path) -> list[Path]:
        """Write an MP4 for viewing and a lossless MKV for evaluation per clip, and a GIF of all."""
        each = zip(samples.data, samples.file_names(), strict=True)
        paths = [path for clip, name in each for path in write_clip(clip, folder / name, self.rate)]
        names = self.labels_of(samples, 40)
        return [write_animation(samples.data[:40], names, folder / "samples.gif", self.rate), *paths]

    def save_picture(self, samples: Samples, file: Path) -> None:
        """Save a sheet of the first 40 clips, several frames of each in a row."""
        save_png(file, lay_out([strip(clip) for clip in samples.data[:40]], self.labels_of(samples, 40)))

    @classmethod
    def view(cls, paths: Sequence[Path], out: Path | None = None) -> str:
        return view(paths, out)

    @classmethod
    def show(cls, files: Sequence[Path]) -> Shown:
        return show_one(files)

    def prepare(self, source: Path, out: Path, check: bool = False) -> None:
        """Encode clips of the training videos below `source` once, for `modality.latents=`.

        With `check`, decode every video instead and write a manifest of the results.
        """
        if check:
            check_videos(source, out)
            return
        options = dict(self._preparation)
        starts = options.pop("starts", 1)
        if starts < 1:
            raise ValueError(f"modality.preparation.starts must be at least 1, got {starts}")
        data = self.data = self.clips_of(source)
        print(data.understood())
        setting = {
            "source": printable(real_path(source)),
            **self.setting(),
            "starts": starts,
            "policy": data.reader.policy,
            "backend": data.reader.backend,
            "hold": data.reader.hold,
        }
        self.write_latents(source_of(data, starts, self.captions), out, setting, options)

    def train_codec(self, out: Path, seed: int = 0, stopped: Callable[[], bool] = lambda: False) -> bool:
        codec = self._make_codec()
        if not isinstance(codec, CausalPatches) or codec.path is not None:
            raise ValueError(
                "train_codec trains modality.codec=causal_patches, without a modality.codec.path"
            )
        self._shape(codec)
        roots = {"root": getattr(self.data, "root", None), "pictures": getattr(self.pictures, "root", None)}
        setting = {
            **{name: root and str(real_path(root)) for name, root in roots.items()},
            **self.setting(),
            "images": self.images,
            "seed": seed,
        }
        return training.train_codec(
            codec.to(own_device()),
            self.fitting_data,
            lambda step: self._pixels(codec.batch, seed, step),
            self._held_out().data,
            setting,
            out,
            stopped=stopped,
        )
