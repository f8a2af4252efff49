"""Published video autoencoders of diffusers, and image autoencoders frame by frame, behind one interface."""

from collections.abc import Sequence
from itertools import islice
from os import PathLike
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from modalities.latent import Published
from modalities.latent.codec import Batches, cells_of_clip

Clip = Float[Tensor, "B C T H W"]
Cells = Float[Tensor, "B L t h w"]
FRAMEWISE = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "AutoencoderKLTemporalDecoder")
"""Classes that encode each frame separately; the last one decodes a whole clip at once."""
CAUSAL = ("AutoencoderKLWan", "AutoencoderKLMochi", "AutoencoderKLCosmos", "AutoencoderKLLTXVideo")
"""Classes whose latent frames do not depend on later frames."""
UNTILED = ("AutoencoderKLTemporalDecoder", "AutoencoderKLCosmos")
"""Classes that do not support tiling, or ignore it."""


class Autoencoder(Published):
    """A diffusers video autoencoder.

    ============================ ========= ============ ==================================================
    class                        frames    encoder      in pieces
    ============================ ========= ============ ==================================================
    AutoencoderKL, Tiny, DC      any       frame alone  frames, exact
    AutoencoderKLTemporalDecoder any       frame alone  encodes frames, exact; decodes a clip as a whole
    AutoencoderKLWan             1 + 4 k   causal       by itself, a latent frame at a time, exact
    AutoencoderKLMochi           1 + 6 k   causal       clip as a whole
    AutoencoderKLCosmos          1 + 8 k   causal       clip as a whole
    AutoencoderKLLTXVideo        1 + 8 k   causal       clip as a whole; its decoder looks ahead
    AutoencoderKLCogVideoX       1 + 8 k   within 8     by itself, 8 frames at a time, which is its definition
    AutoencoderKLHunyuanVideo    1 + 4 k   looks ahead  clip as a whole
    ============================ ========= ============ ==================================================

    In non-causal encoders (normalisation over frames, convolutions that look ahead), the first latent frame depends on
    later frames; all of them can encode a clip of one frame. Multiples are those of the published weights; others
    follow from the configuration. LTX's timestep-conditioned decoder is run at timestep 0, without noise.

    Args:
        path: a folder that `save_pretrained` wrote, a name on the Hugging Face hub, or the loaded model itself.
        subfolder: subfolder of `path` that has the model ("vae" in a pipeline's folder).
        whiten: training clips on which mean and deviation of each channel are measured, in place of published values; 0
            keeps the published ones.
        at_once: frames encoded or decoded at a time, to bound memory; at least one clip for classes that process a clip
            as a whole.
        tiling: cut large frames (for LTX and Hunyuan also long clips) into overlapping tiles and blend them, as
            diffusers does: less memory, but an approximation that can differ visibly.

    Raises:
        ValueError: if it is not such an autoencoder, cannot be loaded, or cannot be tiled.
    """

    known = (*FRAMEWISE, *CAUSAL, "AutoencoderKLCogVideoX", "AutoencoderKLHunyuanVideo")
    stride = (1, 1, 1)  # until a trial run determines it

    def __init__(
        self,
        path: str | PathLike | nn.Module,
        subfolder: str | None = None,
        whiten: int = 16,
        at_once: int = 32,
        tiling: bool = False,
    ) -> None:
        if whiten < 0 or at_once < 1:
            raise ValueError(
                f"codec.whiten must not be negative, codec.at_once at least 1, got {whiten} and {at_once}"
            )
        super().__init__(path, subfolder)
        self.kind, self.whiten, self.at_once = type(self.model).__name__, whiten, at_once
        self.framewise = self.kind in FRAMEWISE
        self.causal = self.framewise or (
            self.kind in CAUSAL and self.model.config.get("encoder_causal", True)
        )
        self._tile(tiling)
        raw = self._raw(torch.zeros(1, 3, 1, 64, 64))
        self.channels = raw.shape[1]
        self.stride = (_frames_per_cell(self.model), 64 // raw.shape[3], 64 // raw.shape[4])
        # CogVideoX decodes latent frames in pairs, and treats an even number of them as a clip without a first frame.
        self.group = self.stride[0] * (2 if self.kind == "AutoencoderKLCogVideoX" else 1)
        for name in ("mean", "scale"):
            self.register_buffer(name, getattr(self, name).expand(1, self.channels, 1, 1, 1).clone())

    def shape(self, size: Sequence[int]) -> tuple[int, ...]:
        return self.channels, *cells_of_clip(size, self.stride, self.group, f" for {self.kind}")

    @torch.no_grad()
    def fit(self, batches: Batches) -> None:
        """Measure mean and deviation of each channel on the first `whiten` clips."""
        if not self.whiten:
            return
        clips = (clip for batch in batches for clip in batch.split(1))
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for clip in islice(clips, self.whiten):
            rows = self._raw(clip).cpu().double().transpose(0, 1).flatten(1)
            count, total, squares = count + rows.shape[1], total + rows.sum(1), squares + rows.square().sum(1)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp_min(1e-12).sqrt()
        self.mean.copy_(mean.view(self.mean.shape))
        self.scale.copy_(deviation.reciprocal().view(self.scale.shape))

    def _raw(self, x: Clip) -> Cells:
        if not self.framewise:
            return torch.cat([self.modes(part) for part in x.split(self._clips_at_once(x.shape[2]))])
        rows = rearrange(x, "b c t h w -> (b t) c h w").split(self.at_once)
        return rearrange(
            torch.cat([self.modes(part) for part in rows]), "(b t) c h w -> b c t h w", t=x.shape[2]
        )

    def _pixels(self, raw: Cells) -> Clip:
        t = raw.shape[2]
        if not self.framewise:
            clips = self._clips_at_once(1 + (t - 1) * self.stride[0])
            return torch.cat([self._decoded(part) for part in raw.split(clips)])
        whole = self.kind == "AutoencoderKLTemporalDecoder"
        parts = rearrange(raw, "b c t h w -> (b t) c h w").split(
            t * self._clips_at_once(t) if whole else self.at_once
        )
        options = {"num_frames": t} if whole else {}
        rows = torch.cat([self.model.decode(part, **options).sample for part in parts])
        return rearrange(rows, "(b t) c h w -> b c t h w", t=t)

    def _decoded(self, raw: Cells) -> Clip:
        if self.model.config.get("timestep_conditioning"):
            return self.model.decode(raw, temb=raw.new_zeros(len(raw))).sample
        return self.model.decode(raw).sample

    def _clips_at_once(self, frames: int) -> int:
        return max(1, self.at_once // frames)

    def _tile(self, tiling: bool) -> None:
        if tiling and self.kind in UNTILED:
            raise ValueError(f"codec.tiling must be false: {self.kind} cannot be tiled")
        if tiling:
            self.model.enable_tiling()
        if self.kind in ("AutoencoderKLLTXVideo", "AutoencoderKLHunyuanVideo"):
            self.model.use_framewise_encoding = self.model.use_framewise_decoding = tiling


def _frames_per_cell(model: Any) -> int:
    """Frames per latent frame; for Wan always 4, whatever its configuration says."""
    ratio = vars(model).get("temporal_compression_ratio") or model.config.get("temporal_compression_ratio")
    return int(ratio or (4 if type(model).__name__ == "AutoencoderKLWan" else 1))
