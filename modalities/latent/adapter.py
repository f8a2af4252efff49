"""The base of the image and video modalities: samples are latents of a codec, encoded on the fly or read from disk."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ditmoe.checkpoint import replacing
from ditmoe.conditioning import captions_of
from ditmoe.modality import (
    Asked,
    Encoding,
    Files,
    GivenParts,
    Metric,
    Modality,
    NativeSizes,
    Preparation,
    PublishedAutoencoder,
    Reader,
    Samples,
    Tokens,
)
from ditmoe.outside import at_home, check_number, printable
from ditmoe.outside import device as own_device
from modalities.latent import latent_cache, latent_writer
from modalities.latent.autoencoder import Published
from modalities.latent.codec import Batches, Codec, to_bytes, to_pixels
from modalities.latent.latent_cache import Latents
from modalities.latent.latent_shards import Source
from modalities.latent.packing import packed_rows
from modalities.shared.captions import Captioned
from modalities.shared.provenance import digest_of

LARGEST = 2**27
"""Most pixels of a sample, over all frames of a clip: as floats, 1.5 GB on their way through a codec."""


class LatentModality(
    Modality,
    Files,
    Metric,
    Encoding,
    Preparation,
    PublishedAutoencoder,
    NativeSizes,
    GivenParts,
    Captioned,
):
    """A modality whose samples are latents of a codec.

    Args:
        codec: makes the codec between pixels and latents.
        tokens: makes the patchifier for a width, a number of channels and a stride.
        size: (H, W) in pixels.
        latents: a folder that `prepare` wrote; training then neither reads nor encodes the data.
        native: train at native sizes and proportions; samples larger than the area of `size` are shrunk to it.
        budget: with `native`, the most tokens of a packed row.
        rows: with `native`, packed rows in a batch, over all processes.
        data_facts: class names, latent shape and fitted codec, from a checkpoint; None takes them from the data.
        captions: condition on captions as well as classes (`modalities.shared.captions`).
    """

    published: ClassVar[type[Published]]
    """The class of a published codec, whose weights are not stored in checkpoints."""
    decoded_at_once: ClassVar[int]
    """How many samples are decoded in one batch."""
    arrays: ClassVar[tuple[str, str]]
    """Names of the samples and of their labels in an npz file."""

    def __init__(
        self,
        codec: Callable[..., Codec],
        tokens: Callable[..., Tokens],
        size: Sequence[int],
        latents: str | PathLike | None,
        native: bool,
        budget: int,
        rows: int,
        data_facts: Mapping[str, Any] | None,
        captions: bool = False,
    ) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"modality.size must be [height, width] in pixels, got {list(size)}")
        self.size, self.budget, self._rows = tuple(size), budget, packed_rows(native, rows, latents)
        self.captions = captions
        self._make_codec, self._make_tokens, self._latents = codec, tokens, latents
        self._tried: Codec | None = None
        self._facts = (
            {**data_facts, "classes": [printable(name) for name in data_facts["classes"]]}
            if data_facts
            else None
        )
        for name in {"shape", "stride"} & {*(data_facts or ())}:
            if not all(type(n) is int and 0 < n < 2**24 for n in data_facts[name]):  # type: ignore[index]
                raise ValueError(f"the {name} of the latents must be whole numbers from 1")
        self._fitted_state: Mapping[str, Tensor] | None = None
        self._known: Mapping[str, Any] | None = None

    @property
    @abstractmethod
    def pixel_size(self) -> tuple[int, ...]:
        """Size of a sample in pixels, with the frames first for a clip."""

    @abstractmethod
    def setting(self) -> dict[str, Any]:
        """The options that latents on disk depend on, by name."""

    @abstractmethod
    def picker(self, record: Mapping[str, Any]) -> latent_cache.Pick:
        """Return the map from an index in the training stream to a sample and a view, for latents with this record."""

    @abstractmethod
    def write_each(self, samples: Samples, folder: Path) -> list[Path]:
        """Write one file per sample and return the paths."""

    @cached_property
    def cached(self) -> Latents | None:
        """The latents on disk, or None if the data is encoded on the fly."""
        if self._latents is None:
            return None
        record = latent_cache.read_record(at_home(self._latents))
        found = Latents(self._latents, self.picker(record))
        found.check(**self.setting())
        return found

    @abstractmethod
    def fitting_data(self) -> Batches:
        """Batches of training data to fit the codec to."""

    @property
    @abstractmethod
    def even_reader(self) -> Reader:
        """The reader of batches of samples of one size."""

    @property
    @abstractmethod
    def packed_reader(self) -> Reader:
        """The reader of packed rows of samples of different sizes."""

    def reader(self) -> Reader:
        return self.packed_reader if self.rows else self.even_reader

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B L *cells"], Asked]:
        reader = self.even_reader
        return reader.finish(reader.read(size, seed, step, rank, world))

    def packed_batch(self, seed: int, row: int) -> tuple[list[Float[Tensor, "L ..."]], Asked]:
        reader = self.packed_reader
        return reader.finish(reader.read(seed, row))

    @abstractmethod
    def class_names(self) -> list[str]:
        """Class names of the data."""

    @cached_property
    def codec(self) -> Codec:
        """The codec, with its state from the checkpoint or the latents on disk, else fitted to the training data."""
        return self.ready_codec(self._fitted_state)

    def restore_facts(self, data_facts: Mapping[str, Any]) -> None:
        self._fitted_state, self._known = data_facts["codec"], data_facts

    def adopt_facts(self, data_facts: Mapping[str, Any]) -> str:
        """Adopt the codec of another run, whose latents its weights know, unless a path or latents on disk bring one.

        Options of fitting (`steps`, `batch`) do not matter then; those that change its shapes do.
        """
        if self._latents is not None or self._is_published:
            return ""
        with torch.device("meta"):
            codec = self._make_codec()
        if getattr(codec, "path", None) is not None:
            return ""
        try:
            codec.check(data_facts["codec"])
            same = list(codec.stride) == list(data_facts["stride"])
        except (AttributeError, KeyError, TypeError, ValueError):
            same = False
        if not same:
            return "another codec than there, fitted to this data: its latents are new to the weights"
        self._fitted_state = data_facts["codec"]
        return "the codec from there, too" if self._fitted_state else ""

    def check_facts(self) -> None:
        if self._facts is not None and not self._is_published:
            with torch.device("meta"):  # refuse a bad configuration before allocating memory
                self._make_codec().check(self._facts["codec"])

    def ready_codec(self, fitted_state: Mapping[str, Tensor] | None) -> Codec:
        """Build the codec on the device, with the given state, else a known one, else one fitted to the data.

        Raises:
            ValueError: if the size does not fit the codec, or its latents have another shape than the model's.
        """
        self.check_facts()
        codec = self._make_codec()
        shape = self._shape(codec)
        if self._facts is not None:
            if shape != self._facts["shape"]:
                raise ValueError(
                    f"the codec's latents must be {self._facts['shape']} as the model's, got {shape}"
                )
            fitted_state = self._facts["codec"]
        if next(codec.buffers()).device.type != "meta":  # on meta only shapes are needed
            codec.to(own_device())
        if fitted_state is not None:
            codec.restore(fitted_state)
        elif self.cached is not None:
            self.cached.restore(codec)
        else:
            codec.fit(self.fitting_data())
        if self._facts is None and self.cached is not None:
            self.cached.check_shape(shape)
        return codec.eval().requires_grad_(False)

    def _shape(self, codec: Codec) -> list[int]:
        if len(codec.stride) != len(self.pixel_size):
            raise ValueError(
                f"modality.codec must be one for {self.name}s, got {type(codec).__module__}.{type(codec).__name__}"
            )
        if math.prod(self.pixel_size) > LARGEST:
            raise ValueError(f"a {self.name} must have at most {LARGEST} pixels, got {list(self.pixel_size)}")
        return list(codec.shape(self.pixel_size))

    def data_facts(self) -> dict[str, Any]:
        if self._facts is None:
            codec = self.codec
            self._facts = {
                "classes": self.class_names(),
                "shape": self._shape(codec),
                "stride": list(codec.stride),
                "codec": codec.fitted_state(),
            }
            self._facts |= self.words_known(self._known)
        return self._facts

    @property
    def _described(self) -> Any:
        return self.cached or self.data

    @property
    def classes(self) -> Sequence[str]:
        return self.data_facts()["classes"]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return tuple(self.data_facts()["shape"])

    @property
    def rows(self) -> int:
        return self._rows

    def tokens(self, hidden_size: int, **options: Any) -> Tokens:
        channels, stride = self.sample_shape[0], self.data_facts()["stride"]
        tokens = self._make_tokens(hidden_size=hidden_size, channels=channels, stride=stride, **options)
        x = torch.zeros(1, *self.sample_shape)
        tokens.patchify(x, tokens.layout(x))  # fail early if the size is not a multiple of the patch
        return tokens

    @property
    def unit(self) -> list[int]:
        """(H, W) of a token in pixels, or of a latent cell if tokens are not patches."""
        patch = getattr(self.tokens(8), "patch_size", (1, 1))  # the same for any width
        return [s * p for s, p in zip(self.data_facts()["stride"][-2:], patch[-2:], strict=True)]

    def check_whole_tokens(self, size: Sequence[int]) -> None:
        """Raise ValueError unless (H, W) in pixels, which fit the codec, are also multiples of a token's size."""
        if any(n % u for n, u in zip(size, self.unit, strict=True)):
            raise ValueError(
                f"size must be a multiple of a token's {self.unit} pixels on each axis, got {list(size)}"
            )

    def encode(self, data: UInt8[np.ndarray, "B *size 3"]) -> Float[Tensor, "B L *cells"]:
        """Encode images or clips to latents, on the codec's device."""
        codec = self._tried_codec()
        return codec.encode(to_pixels(data).to(next(codec.buffers()).device))

    def decode(self, x: Float[Tensor, "S L *cells"]) -> UInt8[np.ndarray, "S *size 3"]:
        codec = self._tried_codec()
        device = next(codec.buffers()).device
        parts = [to_bytes(codec.decode(part.to(device))) for part in x.split(self.decoded_at_once)]
        return np.concatenate(parts)

    def _tried_codec(self) -> Codec:
        """The codec, tried before its first use: a pipeline builds its transformer with a blank one.

        Raises:
            ValueError: if it makes latents or pixels that no model could be trained on.
        """
        if self._tried is not self.codec:
            self.codec.check_range()
            self._tried = self.codec
        return self.codec

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        if folder.suffix != ".npz":
            self.save_picture(samples, folder / "samples.png")
            return [folder / "samples.png", *self.write_each(samples, folder)]
        arrays = dict(zip(self.arrays, (samples.data, samples.labels), strict=True))
        with replacing(folder) as stream:
            np.savez(stream, **{name: array for name, array in arrays.items() if array is not None})  # type: ignore[arg-type]
        self.save_picture(samples, folder.with_suffix(".png"))
        return [folder.with_suffix(".png"), folder]

    def labels_of(self, samples: Samples, most: int) -> list[str]:
        """Captions or class names of the first samples, for a contact sheet; empty if they have neither."""
        if samples.asked is not None and (told := captions_of(samples.asked)) is not None:
            return told[:most]
        if samples.labels is None:
            return [""] * min(most, len(samples))
        return [self.class_name(label) for label in samples.labels[:most].tolist()]

    def write_latents(
        self, source: Source, out: Path, setting: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        """Encode a data set for `modality.latents=`, or only what has changed since last time; prints a summary.

        A codec that was fitted when the folder was made is kept, since models were trained on its latents.
        """
        recipe = self._recipe(setting)
        found = latent_writer.read_codec(out, recipe) if recipe else None
        self.codec = self.ready_codec(found[0] if found else None)
        if found and self.codec.fingerprint() != found[1]:  # the published weights have changed
            found, self.codec = None, self.ready_codec(None)
        report = latent_writer.prepare(source, self.encode, out, setting, self.codec, recipe, **options)
        print(latent_writer.summary(report, source.kind, out))
        if found and report["made"] + report["removed"] and type(self.codec).fit is not Codec.fit:
            print(
                "the codec stays as it was fitted when the folder was made; a new folder fits one to these data"
            )

    def _recipe(self, setting: Mapping[str, Any]) -> str:
        """How the codec is fitted to the data, or "" if it is read from a file of its own."""
        words = dict(getattr(self._make_codec, "keywords", {}))
        if self._is_published:
            words = {name: word for name, word in words.items() if name not in ("path", "subfolder")}
        elif words.get("path") is not None:
            return ""
        how = [f"{name} {value}" for name, value in setting.items() if name != "source"]
        kind = getattr(self._make_codec, "func", self._make_codec)
        return digest_of(kind, *how, *(f"{name} {word}" for name, word in sorted(words.items())))

    @property
    def autoencoder(self) -> Any:
        return self.codec.model if isinstance(self.codec, self.published) else None

    @property
    def _is_published(self) -> bool:
        return getattr(self._make_codec, "func", None) is self.published

    def attach(self, autoencoder: Any) -> None:
        own = self._is_published
        if autoencoder is None and own:
            raise ValueError(
                f"the folder must hold the autoencoder that its {self.name}s need (vae/), got none"
            )
        if autoencoder is not None:
            self.codec = self._make_codec(path=autoencoder) if own else self.published(autoencoder)
            if own and self._facts and self._facts.get("codec"):
                self.codec.restore(self._facts["codec"])


def check_size(size: Sequence[int]) -> None:
    """Raise ValueError unless this is a valid (H, W) in pixels."""
    for index, number in enumerate(size):
        check_number(f"size[{index}]", number, 1, whole=True)
    if len(size) != 2:
        raise ValueError(f"size must be [height, width] in pixels, got {list(size)}")
