"""Codecs between pixels and latents: the interface, and those that need no download."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from modalities.shared import patchify, unpatchify

Pixels = Float[Tensor, "B C *size"]
Latents = Float[Tensor, "B L *cells"]
Batches = Iterable[Float[Tensor, "_ C *size"]]
LARGEST = 1e9
"""Greatest value of black, grey and white as latents, and of latents of 1 as pixels: above that of constant data."""


def to_pixels(data: UInt8[np.ndarray, "B *size C"]) -> Float[Tensor, "B C *size"]:
    """Convert 8-bit images or clips to floats in [-1, 1], channels first."""
    return torch.from_numpy(np.ascontiguousarray(data)).movedim(-1, 1).float() / 127.5 - 1


def to_bytes(x: Float[Tensor, "B C *size"]) -> UInt8[np.ndarray, "B *size C"]:
    """The inverse of `to_pixels`: rounded, and clipped to [0, 255]."""
    return (x.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu().numpy()


def is_finite(value: Tensor) -> bool:
    """Whether all values are finite; a meta tensor counts as finite."""
    return value.is_meta or bool(value.isfinite().all())


class Codec(nn.Module, ABC):
    """Maps pixels in [-1, 1] to latents of about zero mean and unit deviation per channel, and back.

    Attributes:
        stride: pixels per latent cell, along each axis.
        channels: L, channels of the latents.
        pixel_channels: C, channels of the pixels.
        causal: whether the first latent frame of a clip encodes its first frame alone.
    """

    stride: tuple[int, ...]
    channels: int
    pixel_channels: int = 3
    causal: bool = False

    @abstractmethod
    def encode(self, x: Pixels) -> Latents:
        """Encode pixels, whose sizes must be multiples of `stride`; deterministic."""

    @abstractmethod
    def decode(self, z: Latents) -> Pixels:
        """Decode latents to pixels, which may lie slightly outside [-1, 1]."""

    def fit(self, batches: Batches) -> None:
        """Fit the codec to some of the data, once, before anything else; most codecs need no fitting."""

    def state(self) -> dict[str, Tensor]:
        """What was fitted to the data or set by the configuration; published weights are not part of it."""
        return dict(self.named_buffers(recurse=False))

    def fitted_state(self) -> dict[str, Tensor]:
        """The state, on the CPU."""
        return {name: value.detach().cpu() for name, value in self.state().items()}

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError if a state belongs to another codec or is not finite."""
        own = self.state()
        for name in [*own, *state]:
            found = [of.get(name) for of in (state, own)]
            shapes = [tuple(of.shape) if isinstance(of, Tensor) else "missing" for of in found]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the codec must be the one that the latents were made with: {name} was {shapes[0]}, is {shapes[1]}"
                )
            if not is_finite(state[name]):  # outputs would be black, without any error
                raise ValueError(f"the codec must hold finite numbers, got others in its {name}")

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load a state from `fitted_state`.

        Raises:
            ValueError: if it belongs to another codec.
        """
        self.check(state)
        self.load_state_dict(dict(state), strict=False)

    @torch.no_grad()
    def check_range(self) -> None:
        """Raise ValueError if values overflow: each number of a state may be finite, and one of them a divisor."""
        place = next(chain(self.buffers(), self.parameters()), torch.zeros(0)).device
        size = [pixels + (self.causal and not axis) for axis, pixels in enumerate(self.stride)]
        levels = torch.tensor([-1.0, 0.0, 1.0], device=place).view(-1, 1, *[1] * len(size))
        z = self.encode(levels.expand(-1, self.pixel_channels, *size))
        for what, values in (("latents", z), ("pixels", self.decode(torch.ones_like(z)))):
            if not bool((values.abs() <= LARGEST).all()):
                raise ValueError(
                    f"the codec must make {what} within {LARGEST:g} of 0, got {values.abs().max():g}: its state is "
                    "damaged, make it again"
                )

    def fingerprint(self) -> str:
        """A hash of everything that the latents depend on, published weights included."""
        digest = sha256(type(self).__name__.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """Latent shape (L, *cells) of a sample of this size in pixels.

        Raises:
            ValueError: if an axis is not a multiple of its stride.
        """
        if len(size) != len(self.stride) or any(
            n < s or n % s for n, s in zip(size, self.stride, strict=True)
        ):
            raise ValueError(
                f"size must be a multiple of the codec's stride {list(self.stride)} on each axis, got {list(size)}"
            )
        return self.channels, *(n // s for n, s in zip(size, self.stride, strict=True))


def cells_of_clip(
    size: Sequence[int], stride: Sequence[int], group: int, what: str = ""
) -> tuple[int, int, int]:
    """Latent cells (t, h, w) of a clip (T, H, W) whose frame 0 is encoded alone and the others in groups.

    Args:
        group: step in frames between valid clip lengths, a multiple of `stride[0]`.
        what: name of the codec that sets the rule, for the error.

    Raises:
        ValueError: if the size does not fit.
    """
    t, h, w = stride
    if len(size) != 3 or min(size) < 1 or (size[0] - 1) % group or size[1] % h or size[2] % w:
        frames = f"1 + a multiple of {group}" if group > 1 else "at least 1"
        raise ValueError(
            f"frames must be {frames}, height and width multiples of {h} and {w}{what}, got {list(size)}"
        )
    return 1 + (size[0] - 1) // t, size[1] // h, size[2] // w


class Identity(Codec):
    """The identity: latents are pixels scaled to unit deviation.

    Args:
        axes: axes of a sample: 2 for an image, 3 for a clip.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, axes: int = 2) -> None:
        super().__init__()
        self.stride, self.channels = (1,) * axes, self.pixel_channels
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def encode(self, x: Pixels) -> Latents:
        return (x - self.mean) / self.scale

    def decode(self, z: Latents) -> Pixels:
        return z * self.scale + self.mean

    def fit(self, batches: Batches) -> None:
        x = torch.cat(list(batches))
        self.mean.copy_(x.mean())
        self.scale.copy_(x.std().clamp_min(1e-3))


class PatchPCA(Codec):
    """The best linear codec: principal components of patches, whitened.

        z = (patch - mean) V / s,      patch = mean + (z s) V^T

    with the L leading eigenvectors V of the patch covariance and the square roots s of their eigenvalues, in closed
    form from some of the training data. A patch is one latent cell.

    Args:
        patch: pixels per cell, along each axis.
        channels: L, number of components kept.

    Raises:
        ValueError: if there would be more components than values in a patch.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, patch: Sequence[int], channels: int) -> None:
        super().__init__()
        self.stride, self.channels = tuple(patch), channels
        numbers = self.pixel_channels * math.prod(self.stride)
        if not 1 <= channels <= numbers:
            raise ValueError(f"channels must lie between 1 and the {numbers} of a patch, got {channels}")
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("basis", torch.eye(numbers, channels))
        self.register_buffer("scale", torch.ones(channels))

    def encode(self, x: Pixels) -> Latents:
        self.shape(x.shape[2:])
        tokens = patchify(x.movedim(1, -1), self.stride)
        z = (tokens - self.mean) @ (self.basis / self.scale)
        cells = [n // s for n, s in zip(x.shape[2:], self.stride, strict=True)]
        return z.unflatten(1, cells).movedim(-1, 1)

    def decode(self, z: Latents) -> Pixels:
        tokens = z.movedim(1, -1).flatten(1, -2) @ (self.basis * self.scale).T + self.mean
        size = [n * s for n, s in zip(z.shape[2:], self.stride, strict=True)]
        return unpatchify(tokens, size, self.stride).movedim(-1, 1)

    @torch.no_grad()
    def fit(self, batches: Batches) -> None:
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for x in batches:
            rows = patchify(x.movedim(1, -1), self.stride).flatten(0, 1).double()
            count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.T @ rows
        mean = total / count
        values, vectors = torch.linalg.eigh(squares / count - torch.outer(mean, mean))
        kept = vectors[:, -self.channels :].flip(-1)
        # The sign of an eigenvector is arbitrary: make its largest entry positive.
        kept = kept * kept.gather(0, kept.abs().argmax(0, keepdim=True)).sign()
        self.mean.copy_(mean)
        self.basis.copy_(kept)
        self.scale.copy_(values[-self.channels :].flip(-1).clamp_min(1e-6).sqrt())
