"""The built-in video autoencoder: causal in time, initialised in closed form, refined by a minute of training."""

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
from ditmoe.outside import printable
from modalities.latent import Codec, PatchPCA
from modalities.latent.codec import Batches, cells_of_clip

Clip = Float[Tensor, "B C T H W"]
Cells = Float[Tensor, "B L t h w"]
REACH = 2
"""Previous latent frames that a block reads."""
KIND = "CausalPatches"
"""The kind recorded in checkpoints of `train_codec`."""


class CausalPatches(Codec):
    """Principal components of spacetime patches with learned causal residual corrections.

        z = (PCA(x) + e(x) - mean) / deviation,     x = PCA^-1(z') + d(z'),   z' = z deviation + mean

    Frame 0 is encoded alone (repeated to fill a group), then each group of `stride[0]` frames makes a latent frame: T =
    1 + k stride[0], an image is a clip of one frame, and later frames have no influence. e and d start at zero, so
    training starts from the best linear codec.

    Args:
        stride: frames, rows and columns of a patch.
        channels: L, channels of the latents.
        width: width of the residual blocks.
        depth: residual blocks in each of encoder and decoder.
        steps: refinement steps in `fit`, on `batch` clips each; 0 keeps the closed form.
        chunk: latent frames encoded or decoded at a time, which bounds the memory of long clips.
        path: a folder that `python -m ditmoe.train_codec` wrote, loaded by `fit` in place of fitting; its stride,
            channels, width and depth must be the same.
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
        with torch.random.fork_rng(devices=[]):  # the same initial weights every time
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
        """Process latent frames in overlapping chunks, keeping those with their complete past."""
        parts = []
        for start in range(0, frames, self.chunk):
            begin, end = max(0, start - self.context), min(start + self.chunk, frames)
            part = work(begin, end)
            parts.append(part[:, :, (start - begin) * part.shape[2] // (end - begin) :])
        return torch.cat(parts, dim=2)

    def fit(self, batches: Batches) -> None:
        """Load what `train_codec` wrote; or fit principal components to the clips and refine for `steps` (with a bar).

        Raises:
            ValueError: if the folder at `path` has no trained codec, or a different one.
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
        """Initialise in closed form: the principal components of some clips."""
        self.linear.fit(self.padded(x).to(self.mean.device) for x in batches)

    @torch.no_grad()
    def whiten(self, batches: Batches) -> None:
        """Set mean and deviation of each channel from the latents of some clips."""
        z = torch.cat([self.encode(x.to(self.mean.device)).cpu() for x in batches])
        z = z * self.deviation.cpu() + self.mean.cpu()
        self.mean.copy_(z.mean((0, 2, 3, 4)).view(-1, 1, 1, 1))
        self.deviation.copy_(z.std((0, 2, 3, 4)).clamp_min(1e-3).view(-1, 1, 1, 1))

    def reconstruct(self, x: Clip) -> Clip:
        """Encode and decode padded clips, without chunks."""
        return self._decode(self._encode(x))

    def padded(self, x: Clip) -> Float[Tensor, "B C P H W"]:
        """Clips with frame 0 repeated in front to fill its group."""
        return torch.cat([x[:, :, :1].expand(-1, -1, self.stride[0] - 1, -1, -1), x], dim=2)


class Refinement:
    """Trains a codec on the reconstruction of clips with AdamW, from the closed form on.

    Args:
        codec: the codec to train; its gradients are switched on.
        steps: total steps, over which the learning rate rises and falls.
    """

    def __init__(self, codec: CausalPatches, steps: int) -> None:
        self.codec, self.steps = codec, steps
        self.parameters = [*codec.encoder.parameters(), *codec.decoder.parameters()]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.parameters, 2e-3, (0.9, 0.99))
        for parameter in self.parameters:  # allocated at once, so that stored moments are compared with them
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
        self.rate = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 2e-3, max(1, steps))

    def step(self, clips: Clip) -> Float[Tensor, ""]:
        """Take one step on some clips; returns their mean squared error before it."""
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
        """The optimiser's moments by parameter index; its options are not part of a checkpoint."""
        return self.optimizer.state_dict()["state"]

    def resume(self, step: int, found: checkpoint.Checkpoint) -> None:
        """Resume after so many steps, with the moments in a checkpoint's part "optimizer".

        Raises:
            ValueError: if they do not belong to this codec.
        """
        checkpoint.fill(found, "optimizer", self.state())
        for moments in self.optimizer.state.values():
            moments["step"].fill_(step)
        self.rate.last_epoch = step
        with warnings.catch_warnings():  # torch warns about get_lr outside of step
            warnings.simplefilter("ignore")
            for group, lr in zip(self.optimizer.param_groups, self.rate.get_lr(), strict=True):
                group["lr"] = lr


def read_codec(folder: Path, options: dict[str, Any]) -> dict[str, Tensor]:
    """Load the codec state that `train_codec` wrote.

    Raises:
        ValueError: if there is none, it is unfinished, or it has other options.
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
            there = printable(given.get(name))[:80] if isinstance(given, dict) else "unknown"
            raise ValueError(f"codec.{name} must be that of {folder}, {there}, got {value}")
    return found.part("fitted_state")


def residual_blocks(inputs: int, width: int, depth: int, outputs: int) -> nn.Module:
    """A projection, causal residual blocks, and a projection that starts at zero."""
    last = nn.Conv3d(width, outputs, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv3d(inputs, width, 1), *(CausalBlock(width) for _ in range(depth)), last)


class CausalBlock(nn.Module):
    """A spatial convolution, then one over a latent frame and the two before it; no statistics over time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.space = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(width, width, (1 + REACH, 1, 1))

    def forward(self, x: Float[Tensor, "B D t h w"]) -> Float[Tensor, "B D t h w"]:
        y = self.space(F.silu(x))
        return x + self.time(F.pad(F.silu(y), (0, 0, 0, 0, REACH, 0)))


def unfold(x: Clip, stride: Sequence[int]) -> Float[Tensor, "B P t h w"]:
    """Rearrange each spacetime patch into channels."""
    t, h, w = stride
    return rearrange(x, "b c (t i) (h j) (w k) -> b (c i j k) t h w", i=t, j=h, k=w)


def fold(x: Float[Tensor, "B P t h w"], stride: Sequence[int]) -> Clip:
    """The inverse of `unfold`."""
    t, h, w = stride
    return rearrange(x, "b (c i j k) t h w -> b c (t i) (h j) (w k)", i=t, j=h, k=w)
