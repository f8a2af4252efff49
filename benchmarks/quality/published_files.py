"""Files as they are published: a run's weights in DiT-MoE's layout, and a small AutoencoderKL of diffusers."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ditmoe.config.restore import restore
from ditmoe.pretrained.published import Architecture, Recipe, recipes


def write_published(run: Path, file: Path) -> None:
    """Write the averaged weights of an image run as DiT-MoE publishes them; the variance is predicted as zeros."""
    restored = restore(run, trusted=True)
    model, section = restored.model, restored.config["model"]
    channels, patch = restored.modality.sample_shape[0], restored.config["modality"]["tokens"]["patch"]
    arch = Architecture(
        family="DiT-MoE", depth=section["depth"], hidden_size=section["hidden_size"],
        num_heads=section["num_heads"], num_classes=len(restored.modality.classes), patch=patch,
        in_channels=channels, out_channels=2 * channels, size=None, moe_layers=tuple(range(section["depth"])),
        num_experts=restored.config["router"]["num_experts"], expert_width=0, shared_width=0, dense_width=0,
        qk_norm=False, fused=False,
    )  # fmt: skip
    state: dict[str, Tensor] = {}
    values = model.state_dict()
    for name, recipe in recipes(model, arch).items():
        state |= taken_apart(recipe, values[name])
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        cells = state[name].unflatten(0, (-1, channels))
        state[name] = torch.cat([cells, torch.zeros_like(cells)], 1).flatten(0, 1)
    sample = torch.empty(1, *restored.modality.sample_shape)
    state["pos_embed"] = model.tokens.positions(model.tokens.layout(sample))[None]
    torch.save({"ema": state}, file)


def taken_apart(recipe: Recipe, value: Tensor) -> dict[str, Tensor]:
    """The published tensors that a recipe joins to `value`: found by joining their elements' numbers."""
    num = torch.Size(recipe.shape).numel()
    numbers = [torch.arange(i * num, (i + 1) * num).view(recipe.shape) for i in range(len(recipe.keys))]
    flat = torch.empty(num * len(recipe.keys))
    flat[recipe.join(numbers).flatten()] = value.flatten()
    parts = flat.view(len(recipe.keys), *recipe.shape)
    return {key: part.clone() for key, part in zip(recipe.keys, parts, strict=True)}


def autoencoder(pictures: Tensor, folder: Path, steps: int = 600) -> None:
    """Train an AutoencoderKL of 4 channels and a quarter of each side, and write its folder.

    Mean squares, on pictures that are mirrored and turned, so that it knows other strokes than theirs; noise on the
    latents takes the place of the posterior's.

    Args:
        pictures: uint8 (S, H, W, 3), of equal height and width.
    """
    import diffusers

    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 32), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    pixels = pictures.movedim(-1, 1).float() / 127.5 - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        x = pixels[torch.randint(len(pixels), (32,))]
        x = torch.rot90(x, int(torch.randint(4, ())), (2, 3))
        x = x.flip(3) if torch.rand(()) < 0.5 else x
        z = model.encode(x).latent_dist.mean
        back = model.decode(z + 0.1 * torch.randn_like(z)).sample
        loss = F.mse_loss(back, x) + 1e-3 * z.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    with torch.no_grad():
        scale = 1 / model.encode(pixels).latent_dist.mean.std().item()
    model.register_to_config(scaling_factor=scale)
    model.save_pretrained(folder)
    print(f"autoencoder: mean square {loss.item():.4f} of the last pictures, latents times {scale:.2f}")
