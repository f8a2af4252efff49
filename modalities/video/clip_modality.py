"""The training data of the video modality: clips, images among them, their latents, and batches of these."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.modality import Reader, Samples, Tokens
from ditmoe.outside import check_number, printable
from modalities.latent import LatentModality, latent_cache
from modalities.latent.adapter import check_size
from modalities.latent.codec import to_pixels
from modalities.video.data import Clips, MovingDigits, NativeClips, readers
from modalities.video.data.batch_reader import BatchReader, shows_images
from modalities.video.data.dataset import pick_view

FITTED_ON, FITTED_NUMBERS = 384, 2**27
"""Training clips to fit the built-in autoencoder to, fewer if they have more values than this."""
HELD_OUT = 64
"""Clips of the test split to evaluate a trained autoencoder on."""


class ClipModality(LatentModality):
    """The data handling of `Video`, whose arguments are the attributes here.

    Attributes:
        frames, stride, rate, images, merge, resample: see `Video`.
    """

    frames: int
    stride: int
    rate: float
    images: float
    merge: bool
    resample: str | None
    _make_data: partial[Clips]
    _make_pictures: partial[Any] | None

    @property
    def pixel_size(self) -> tuple[int, ...]:
        return self.frames, *self.size

    @cached_property
    def data(self) -> Clips | MovingDigits:
        """The data set; read on first use.

        Raises:
            ValueError: if training uses latents on disk and `data.root` does not say where their videos are.
        """
        if self._make_data.keywords.get("root") is not None:
            return self.clips_of()
        if self.cached is not None:
            raise self.cached.without_root()
        return MovingDigits(self.size, self.frames, self.stride, captions=self.captions)

    def clips_of(self, root: Path | None = None, **options: Any) -> Clips:
        """The data set of a folder, by default that of the configuration."""
        options |= {} if root is None else {"root": root}
        if self.resample is not None:
            options |= {"resample": self.resample, "rate": self.rate}
        if self.captions:
            options["captions"] = True
        return self._make_data(size=self.size, frames=self.frames, stride=self.stride, **options)

    @cached_property
    def shown(self) -> Clips | MovingDigits:
        """The clips to fit a codec to; with native lengths, short ones are padded by repeating the last frame."""
        return self.clips_of(hold=True) if self.rows and isinstance(self.data, Clips) else self.data

    @cached_property
    def pictures(self) -> Any:
        """The image data set for clips of one frame; None if first frames of clips are used."""
        if self._make_pictures is None or self._make_pictures.keywords.get("root") is None:
            return None
        return self._make_pictures(size=self.size, **({"captions": True} if self.captions else {}))

    def setting(self) -> dict[str, Any]:
        tempo = {} if self.resample is None else {"resample": self.resample, "rate": self.rate}
        return {"frames": self.frames, "size": list(self.size), "stride": self.stride, **tempo}

    def picker(self, record: Mapping[str, Any]) -> latent_cache.Pick:
        starts = record.get("starts", 1)
        if type(starts) is not int or starts < 1:
            raise ValueError(f"{self._latents} is damaged: its record has starts {printable(starts)}")

        return partial(pick_view, starts=starts)

    def fitting_data(self) -> Iterator[Float[Tensor, "B 3 T H W"]]:
        """Some training clips, with images as static clips in their proportion."""
        numbers = 3 * self.frames * self.size[0] * self.size[1]
        for step in range(max(1, min(FITTED_ON // 32, FITTED_NUMBERS // (32 * numbers)))):
            yield self._pixels(32, 0, step)

    def _pixels(self, size: int, seed: int, step: int) -> Float[Tensor, "B 3 T H W"]:
        if self.pictures is not None and shows_images(self.images, seed, step):
            return to_pixels(self.pictures.batch(size, seed, step)[0][:, None].repeat(self.frames, axis=1))
        return to_pixels(self.shown.batch(size, seed, step)[0])

    def data_facts(self) -> dict[str, Any]:
        stored = self.images and self._latents is not None and self.pictures is None
        if self._facts is None and stored and not self.codec.causal:
            raise ValueError(
                f"modality.images must be 0 or of modality.pictures.root: {type(self.codec.model).__name__} "  # type: ignore[attr-defined]
                "is not causal, so that no latent on disk is that of one frame"
            )
        return super().data_facts()

    def class_names(self) -> list[str]:
        names = list((self.cached or self.data).classes)
        if self.pictures is None or not self.merge:
            return names
        return list(dict.fromkeys([*names, *self.pictures.classes]))

    def shape_of(  # type: ignore[override]
        self, frames: int | None = None, size: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        frames, size = self.frames if frames is None else frames, self.size if size is None else size
        check_number("frames", frames, 1, whole=True)
        check_size(size)
        shape = self.codec.shape((frames, *size))
        self.check_whole_tokens(size)
        return shape

    def tokens(self, hidden_size: int, **options: Any) -> Tokens:
        return super().tokens(hidden_size, rate=self.rate, **options)

    @property
    def even_reader(self) -> Reader:
        return readers.even(self._batch_reader, self.encode, lambda: self._picture_labels)

    @property
    def packed_reader(self) -> Reader:
        return readers.packed(self._batch_reader, self.native_set, self.encode, lambda: self._picture_labels)

    @property
    def _batch_reader(self) -> BatchReader:
        data = None if self.cached is not None else self.data
        return BatchReader(data, self.pictures, self.cached, self.images)

    @cached_property
    def native_set(self) -> NativeClips:
        """The training clips and images, if any, at native lengths and sizes."""
        patch_size = self.tokens(3).patch_size
        shown = NativeClips(self.data, self.pictures, self.codec.shape, self.data_facts()["stride"], patch_size,
                            (self.frames, self.size[0], self.size[1]), self.budget)  # fmt: skip
        print(shown.told())
        return shown

    @cached_property
    def _picture_labels(self) -> Int[np.ndarray, " _"]:
        """Class of an image -> class of the model."""
        names = list(self.classes)
        own = [names.index(name) if self.merge else len(names) for name in self.pictures.classes]
        return np.array([*own, len(names)], np.int64)  # the last for an image without a class

    def understood(self) -> str:
        """A summary of how the data was interpreted, in a few lines."""
        found = [str((self.cached or self.data).understood())]
        if self.pictures is not None:
            found.append(str(self.pictures.understood()))
        if not self.cached and (told := self.captions_understood()):
            found.append(told)
        return "\n".join(found)

    def reference(self, split: str, *count: int) -> Samples:
        return self.data.reference(split, *count)

    def _held_out(self) -> Samples:
        """Clips to evaluate a trained autoencoder on."""
        try:
            return self.reference("test", HELD_OUT)
        except ValueError:  # a small folder may have videos in val only
            return self.reference("val", HELD_OUT)
