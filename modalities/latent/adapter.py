"""What images and clips share: samples that are latents of a codec, encoded on the way or read from a disk."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ditmoe.modality import Modality
from ditmoe.outside import printable
from modalities.latent.autoencoder import Published
from modalities.latent.codec import Batches, Codec
from modalities.latent.latent_cache import Latents

LARGEST = 2**27
"""Pixels of a sample, over all frames of a clip: 1.5 GB of numbers on their way through a codec."""


class LatentModality(Modality):
    """A modality whose samples are latents of a codec.

    Args:
        codec: makes the codec.
        data_facts: class names, shape of the latents and what the codec learnt, from a checkpoint; None finds them from
            the data.
    """

    published: ClassVar[type[Published]]
    """The codec whose weights are in no checkpoint."""

    def __init__(self, codec: Callable[..., Codec], data_facts: Mapping[str, Any] | None) -> None:
        self._make_codec = codec
        self._facts = (
            {**data_facts, "classes": [printable(name) for name in data_facts["classes"]]}
            if data_facts
            else None
        )
        for name in ("shape", "stride") if data_facts else ():
            if not all(type(n) is int and 0 < n < 2**24 for n in data_facts[name]):  # type: ignore[index]
                raise ValueError(f"the {name} of the latents must be whole numbers from 1")
        self._fitted_state: Mapping[str, Tensor] | None = None

    @property
    @abstractmethod
    def pixel_size(self) -> tuple[int, ...]:
        """Of a sample in pixels, frames first where it has some."""

    @property
    @abstractmethod
    def cached(self) -> Latents | None:
        """The latents on disk, where there are some."""

    @abstractmethod
    def fitting_data(self) -> Batches:
        """What a codec learns from."""

    @abstractmethod
    def class_names(self) -> list[str]:
        """Of the data."""

    @cached_property
    def codec(self) -> Codec:
        """As the checkpoint or the latents on disk have it, or fitted to some training data."""
        return self.ready_codec(self._fitted_state)

    def restore_facts(self, data_facts: Mapping[str, Any]) -> None:
        self._fitted_state = data_facts["codec"]

    def ready_codec(self, fitted_state: Mapping[str, Tensor] | None) -> Codec:
        """A codec that knows what it must, which it learns where no one has it yet; on the device.

        Raises:
            ValueError: if the size does not fit it, or its latents are not the model's.
        """
        if self._facts is not None and not self._is_published:
            with torch.device("meta"):  # what does not fit is refused before it takes memory
                self._make_codec().check(self._facts["codec"])
        codec = self._make_codec()
        shape = self._shape(codec)
        if self._facts is not None:
            if shape != self._facts["shape"]:
                raise ValueError(
                    f"the codec's latents must be {self._facts['shape']} as the model's, got {shape}"
                )
            fitted_state = self._facts["codec"]
        if next(codec.buffers()).device.type != "meta":  # there it is only asked for shapes
            codec.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        if fitted_state is not None:
            codec.restore(fitted_state)
        elif self.cached is not None:
            self.cached.restore(codec)
        else:
            codec.fit(self.fitting_data())
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
        return self._facts

    @property
    def classes(self) -> Sequence[str]:
        return self.data_facts()["classes"]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return tuple(self.data_facts()["shape"])

    def encode_pixels(self, x: Float[Tensor, "B C *size"]) -> Float[Tensor, "B L *cells"]:
        """Latents, on the codec's device."""
        return self.codec.encode(x.to(next(self.codec.buffers()).device))

    def decode_latents(self, z: Float[Tensor, "B L *cells"]) -> Float[Tensor, "B C *size"]:
        """The reverse."""
        return self.codec.decode(z.to(next(self.codec.buffers()).device))

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


def to_pixels(data: UInt8[np.ndarray, "B *size C"]) -> Float[Tensor, "B C *size"]:
    """8-bit pictures or clips as numbers in [-1, 1], channels first."""
    return torch.from_numpy(np.ascontiguousarray(data)).movedim(-1, 1).float() / 127.5 - 1


def to_bytes(x: Float[Tensor, "B C *size"]) -> UInt8[np.ndarray, "B *size C"]:
    """The reverse: rounded, and cut off at black and white."""
    return (x.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu().numpy()
