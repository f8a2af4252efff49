"""Tiny randomly initialised autoencoders of diffusers, for the tests of both modalities that use them."""

from typing import Any

import diffusers
import torch

_KL = {
    "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
_STATISTICS = {"latents_mean": [0.1, -0.2, 0.0, 0.3], "latents_std": [1.5, 0.5, 1.0, 2.0]}
_WAN = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [True, True],
        **_STATISTICS}  # fmt: skip
_LTX = {
    "latent_channels": 4, "block_out_channels": (8, 8, 8), "layers_per_block": (1, 1, 1, 1), "patch_size": 2,
    "decoder_block_out_channels": (8, 8, 8), "decoder_layers_per_block": (1, 1, 1, 1),
    "spatio_temporal_scaling": (True, True, False), "decoder_spatio_temporal_scaling": (True, True, False),
    "down_block_types": ("LTXVideoDownBlock3D",) * 3, "decoder_inject_noise": (False,) * 4,
    "downsample_type": ("conv",) * 3, "upsample_residual": (False,) * 3, "upsample_factor": (1,) * 3,
}  # fmt: skip
VIDEO: dict[str, tuple[str, dict[str, Any]]] = {
    "frames": ("AutoencoderKL", {**_KL, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
    "svd": ("AutoencoderKLTemporalDecoder", {"block_out_channels": (32, 32), "latent_channels": 4,
                                             "down_block_types": ["DownEncoderBlock2D"] * 2}),
    "wan2.1": ("AutoencoderKLWan", {**_WAN, "scale_factor_spatial": 4}),
    "wan2.2": ("AutoencoderKLWan", {**_WAN, "scale_factor_spatial": 8, "decoder_base_dim": 4, "is_residual": True,
                                    "in_channels": 12, "out_channels": 12, "patch_size": 2}),
    "cogvideox": ("AutoencoderKLCogVideoX", {
        "block_out_channels": (8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("CogVideoXDownBlock3D",) * 3, "up_block_types": ("CogVideoXUpBlock3D",) * 3}),
    "ltx": ("AutoencoderKLLTXVideo", _LTX),
    "ltx0.9.1": ("AutoencoderKLLTXVideo", {
        **_LTX, "spatio_temporal_scaling": (True, True, True), "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_block_out_channels": (8, 16, 32), "upsample_residual": (True,) * 3, "upsample_factor": (2,) * 3,
        "timestep_conditioning": True}),
    "hunyuan": ("AutoencoderKLHunyuanVideo", {
        "latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}),
    "mochi": ("AutoencoderKLMochi", {
        "encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4, "latent_channels": 4,
        "layers_per_block": (1,) * 5, **_STATISTICS}),
    "cosmos": ("AutoencoderKLCosmos", {
        "latent_channels": 4, "encoder_block_out_channels": (8,) * 4, "decode_block_out_channels": (8,) * 4,
        "num_layers": 1, "resolution": 64, "latents_mean": [0.1, 0.3, -0.2, 0.0, 0.5, 0.5, 1.0, 0.0],
        "latents_std": [1.0, 2.0, 0.5, 0.5, 1.0, 1.0, 2.0, 2.0]}),
}  # fmt: skip
"""A name -> class and configuration."""


def video_autoencoder(kind: str) -> Any:
    """One of `VIDEO`, always with the same weights."""
    torch.manual_seed(0)
    name, options = VIDEO[kind]
    model = getattr(diffusers, name)(**options).eval().requires_grad_(False)
    if name == "AutoencoderKLLTXVideo":
        model.latents_mean += torch.tensor(_STATISTICS["latents_mean"])
        model.latents_std *= torch.tensor(_STATISTICS["latents_std"])
    return model
