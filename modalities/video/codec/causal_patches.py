"""The built-in video autoencoder: causal in time, in closed form to begin with, refined by a minute of training."""

import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from ditmoe import checkpoint
from ditmoe.modality import check_number
from modalities.latent import Codec, PatchPCA
from modalities.latent.codec import Batches, cells_of_clip

Clip = Float[Tensor, "B C T H W"]
Cells = Float[Tensor, "B L t h w"]
REACH = 2
"""Latent frames before its own that a block reads."""
KIND = "CausalPatches"
"""What checkpoints of `train_codec` say they hold."""


class CausalPatches(Codec):
    """Principal components of spacetime patches, corrected by causal residual blocks.

        z = (PCA(x) + e(x) - mean) / deviation,     x = PCA^-1(z') + d(z'),   z' = z deviation + mean

    Frame 0 stands alone (repeated, it fills a group), then each group of `stride[0]` frames makes a latent frame: T = 1
    + k stride[0], an image is a clip of one frame, and frames to come change nothing. e and d start at zero, so that
    training begins where the best linear codec ends.

    Args:
        stride: frames, rows and columns of a patch.
        channels: L, of the latents.
        width: of the residual blocks.
        depth: residual blocks on each side.
        steps: of refinement in `fit`, on `batch` clips each; 0 leaves the closed form.
        chunk: latent frames that are encoded or decoded at a time, which bounds the memory of long clips.
        path: a folder that `python -m ditmoe.train_codec` wrote, from which `fit` takes what it would learn; stride,
            channels, width and depth must be those there.
    """

    mean: Tensor
    deviation: Tensor
    causal = True

    opens: ClassVar[Sequence[str]] = ("path",)

    def __init__(
        self,
        stride: Sequence[int] = (4, 4, 4),
        channels: int = 16,
        width: int = 48,
        depth: int = 2,
        steps: int = 800,
        batch: int = 4,
        chunk: int = 16,
        path: str | PathLike | None = None,
    ) -> None:
        super().__init__()
        if min(chunk, batch) < 1 or steps < 0:
            raise ValueError(f"chunk and batch must be at least 1, steps 0, got {chunk}, {batch} and {steps}")
        check_number("width", width, 1, whole=True)
        check_number("depth", depth, 0, whole=True)
        self.stride, self.channels, self.path = tuple(stride), channels, path
        self.options = {"stride": list(stride), "channels": channels, "width": width, "depth": depth}
        self.steps, self.batch, self.chunk, self.context = steps, batch, chunk, REACH * depth
        self.linear = PatchPCA(stride, channels)
        numbers = len(self.linear.mean)
        with torch.random.fork_rng(devices=[]):  # the same weights whoever asks
            torch.manual_seed(0)
            self.encoder = residual_blocks(numbers, width, depth, channels)
            self.decoder = residual_blocks(channels, width, depth, numbers)
        self.register_buffer("mean", torch.zeros(channels, 1, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1, 1))

    def shape(self, size: Sequence[int]) -> tuple[int, ...]:
        return self.channels, *cells_of_clip(size, self.stride, self.stride[0])

    def encode(self, x: Clip) -> Cells:
        self.shape(x.shape[2:])
        t = self.stride[0]
        x = self.padded(x)
        z = self._in_chunks(lambda begin, end: self._encode(x[:, :, t * begin : t * end]), x.shape[2] // t)
        return (z - self.mean) / self.deviation

    def decode(self, z: Cells) -> Clip:
        z = z * self.deviation + self.mean
        return self._in_chunks(lambda begin, end: self._decode(z[:, :, begin:end]), z.shape[2])[
            :, :, self.stride[0] - 1 :
        ]

    def state(self) -> dict[str, Tensor]:
        return self.state_dict()

    def _encode(self, x: Clip) -> Cells:
        return self.linear.encode(x) + self.encoder(unfold(x, self.stride))

    def _decode(self, z: Cells) -> Clip:
        return self.linear.decode(z) + fold(self.decoder(z), self.stride)

    def _in_chunks(self, work: Callable[[int, int], Tensor], frames: int) -> Tensor:
        """Work on latent frames begin to end, and keep those whose past was all there."""
        parts = []
        for start in range(0, frames, self.chunk):
            begin, end = max(0, start - self.context), min(start + self.chunk, frames)
            part = work(begin, end)
            parts.append(part[:, :, (start - begin) * part.shape[2] // (end - begin) :])
        return torch.cat(parts, dim=2)

    def fit(self, batches: Batches) -> None:
        """Take what `train_codec` learnt; or principal components of the clips, then `steps` of refinement (a bar).

        Raises:
            ValueError: if the folder at `path` holds no trained codec, or another one.
        """
        if self.path is not None:
            self.restore(read_codec(Path(self.path), self.options))
            return
        clips = torch.cat(list(batches))
        self.begin(clips.split(64))
        refinement = Refinement(self, self.steps)
        generator = torch.Generator().manual_seed(0)
        for _ in tqdm(
            range(self.steps), desc="autoencoder", unit="step", mininterval=1, disable=not self.steps
        ):
            refinement.step(clips[torch.randint(len(clips), (self.batch,), generator=generator)])
        self.whiten(clips.split(16))

    def begin(self, batches: Batches) -> None:
        """Take the closed form of some clips: their principal components."""
        self.linear.fit(self.padded(x).to(self.mean.device) for x in batches)

    @torch.no_grad()
    def whiten(self, batches: Batches) -> None:
        """Take mean and deviation of each channel over the latents of some clips."""
        z = torch.cat([self.encode(x.to(self.mean.device)).cpu() for x in batches])
        z = z * self.deviation.cpu() + self.mean.cpu()
        self.mean.copy_(z.mean((0, 2, 3, 4)).view(-1, 1, 1, 1))
        self.deviation.copy_(z.std((0, 2, 3, 4)).clamp_min(1e-3).view(-1, 1, 1, 1))

    def reconstruct(self, x: Clip) -> Clip:
        """Padded clips that were encoded and decoded, all at once."""
        return self._decode(self._encode(x))

    def padded(self, x: Clip) -> Float[Tensor, "B C P H W"]:
        """Clips with frame 0 repeated in front, as often as its group lacks frames."""
        return torch.cat([x[:, :, :1].expand(-1, -1, self.stride[0] - 1, -1, -1), x], dim=2)


class Refinement:
    """Steps of AdamW on the reconstruction of clips, from the closed form on.

    Args:
        codec: is trained, and its gradients switched on.
        steps: in all, over which the learning rate rises and falls.
    """

    def __init__(self, codec: CausalPatches, steps: int) -> None:
        self.codec, self.steps = codec, steps
        self.parameters = [*codec.encoder.parameters(), *codec.decoder.parameters()]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.parameters, 2e-3, (0.9, 0.99))
        for parameter in self.parameters:  # there from the start, so that what is stored is compared with it
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
        self.rate = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 2e-3, max(1, steps))

    def step(self, clips: Clip) -> Float[Tensor, ""]:
        """Learn from some clips; their mean squared error before."""
        x = self.codec.padded(clips.to(self.codec.mean.device))
        error = self.codec.reconstruct(x) - x
        squared = error.square().mean()
        loss = error.abs().mean() + squared
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.rate.step()
        return squared.detach()

    def state(self) -> dict[int, dict[str, Tensor]]:
        """The optimiser's moments, by the number of the parameter; its options are not a matter of a checkpoint."""
        return self.optimizer.state_dict()["state"]

    def resume(self, step: int, found: checkpoint.Checkpoint) -> None:
        """Go on after so many steps, with the moments of a checkpoint's part "optimizer".

        Raises:
            ValueError: if they are not those of this codec.
        """
        checkpoint.fill(found, "optimizer", self.state())
        for moments in self.optimizer.state.values():
            moments["step"].fill_(step)
        self.rate.last_epoch = step
        with warnings.catch_warnings():  # which torch has for who asks at another time
            warnings.simplefilter("ignore")
            for group, lr in zip(self.optimizer.param_groups, self.rate.get_lr(), strict=True):
                group["lr"] = lr


def read_codec(folder: Path, options: dict[str, Any]) -> dict[str, Tensor]:
    """What a codec learnt that `train_codec` wrote.

    Raises:
        ValueError: if there is none, it is not finished, or it has other options.
    """
    try:
        found = checkpoint.find(folder, parts=["fitted_state"])
        if found.plain.get("kind") != KIND:
            raise ValueError("it holds something else")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"codec.path must be a folder that train_codec wrote, got {folder}: {error}"
        ) from error
    if not found.plain.get("finished"):
        raise ValueError(f"{folder} is not finished: run the same train_codec again")
    given = found.plain.get("options")
    for name, value in options.items():
        if not isinstance(given, dict) or given.get(name) != value:
            there = given.get(name) if isinstance(given, dict) else "unknown"
            raise ValueError(f"codec.{name} must be that of {folder}, {there}, got {value}")
    return found.part("fitted_state")


def residual_blocks(inputs: int, width: int, depth: int, outputs: int) -> nn.Module:
    """A projection, causal residual blocks, and a projection that starts at zero."""
    last = nn.Conv3d(width, outputs, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv3d(inputs, width, 1), *(CausalBlock(width) for _ in range(depth)), last)


class CausalBlock(nn.Module):
    """A convolution over space, then one over a latent frame and the two before it; no statistics over time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.space = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(width, width, (1 + REACH, 1, 1))

    def forward(self, x: Float[Tensor, "B D t h w"]) -> Float[Tensor, "B D t h w"]:
        y = self.space(F.silu(x))
        return x + self.time(F.pad(F.silu(y), (0, 0, 0, 0, REACH, 0)))


def unfold(x: Clip, stride: Sequence[int]) -> Float[Tensor, "B P t h w"]:
    """The numbers of each spacetime patch as channels."""
    t, h, w = stride
    return rearrange(x, "b c (t i) (h j) (w k) -> b (c i j k) t h w", i=t, j=h, k=w)


def fold(x: Float[Tensor, "B P t h w"], stride: Sequence[int]) -> Clip:
    """The inverse of `unfold`."""
    t, h, w = stride
    return rearrange(x, "b (c i j k) t h w -> b c (t i) (h j) (w k)", i=t, j=h, k=w)
