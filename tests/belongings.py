"""A person's own files, tiny, by the names that the documentation gives them: data sets, clips, meshes, weights."""

from functools import cache
from pathlib import Path

import av
import numpy as np
import torch
import trimesh
from PIL import Image

from modalities.pointcloud.data.ply import write_ply
from tests.autoencoders import video_autoencoder


@cache
def weights(experts: int) -> dict[str, torch.Tensor]:
    """Names and shapes of the published DiT-MoE, or with no experts DiT, two layers of width 32."""
    d = 32
    shapes = {"x_embedder.proj": (d, 4, 2, 2), "t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d)}
    for layer in range(2):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.attn.qkv": (3 * d, d), f"{block}.attn.proj": (d, d)}
        shapes |= {f"{block}.adaLN_modulation.1": (6 * d, d)}
        if not experts:
            shapes |= {f"{block}.mlp.fc1": (4 * d, d), f"{block}.mlp.fc2": (d, 4 * d)}
            continue
        for name in [*(f"experts.{e}" for e in range(experts)), "shared_experts"]:
            shapes |= {f"{block}.moe.{name}.{half}_proj": (2 * d, d) for half in ("gate", "up")}
            shapes |= {f"{block}.moe.{name}.down_proj": (d, 2 * d)}
        shapes[f"{block}.moe.gate"] = (experts, d)
    shapes |= {"final_layer.linear": (32, d), "final_layer.adaLN_modulation.1": (2 * d, d)}
    state = {f"{name}.weight": torch.randn(shape) * 0.02 for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items() if ".moe." not in name}
    return state | {"y_embedder.embedding_table.weight": torch.randn(1001, d)}


def write_clip(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=8, width=32, height=32, pix_fmt="bgr0")
        for picture in rng.integers(0, 255, (20, 32, 32, 3), dtype=np.uint8):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        file.mux(stream.encode())


def write_all(top: Path) -> None:
    """Fill a folder; in it "pointcloud" and "image" hold the sets a, b and c of that modality."""
    rng = np.random.default_rng(0)
    for name in ("pictures", "imagenet"):
        for number in range(8):
            (top / name / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            picture = rng.integers(0, 255, (32, 24, 3), dtype=np.uint8)
            Image.fromarray(picture).save(top / name / "ab"[number % 2] / f"{number}.png")
    for number in range(8):
        write_clip(top / "clips" / "ab"[number % 2] / f"{number}.mkv", rng)
        (top / "meshes" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        box = trimesh.creation.box(rng.random(3) + 0.5)
        box.visual.vertex_colors = rng.integers(0, 255, (8, 3))
        box.export(top / "meshes" / "ab"[number % 2] / f"{number}.obj")
        for split in ("train", "val", "test"):
            folder = top / "ShapeNetCore.v2.PC15k" / "03001627" / split
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{number}.npy", rng.normal(size=(200, 3)).astype(np.float32))
    for name in "abc":
        for folder in ("pointcloud", "image"):
            (top / folder / name).mkdir(parents=True)
        for number in range(6):
            picture = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
            picture.save(top / "image" / name / f"{number}.png")
            np.save(top / "pointcloud" / name / f"{number}.npy", rng.normal(size=(64, 3)).astype(np.float32))
    for name in ("clip", "a", "b"):
        write_clip(top / f"{name}.mkv", rng)
    Image.fromarray(rng.integers(0, 255, (32, 24, 3), dtype=np.uint8)).save(top / "photo.png")
    Image.fromarray(np.pad(np.full((12, 12), 255, np.uint8), 10)[:, 4:28]).save(top / "hole.png")
    for name in ("scan", "lower", "upper"):
        write_ply(top / "pointcloud" / f"{name}.ply", rng.normal(0, 0.17, (30, 3)).astype(np.float32))
    np.savez(top / "pointcloud" / "a.npz", rng.normal(size=(6, 64, 3)).astype(np.float32))
    video_autoencoder("frames").save_pretrained(top / "sd-vae-ft-ema")
    video_autoencoder("wan2.1").save_pretrained(top / "Wan2.1-T2V-1.3B-Diffusers" / "vae")
    torch.save(weights(4), top / "dit_moe_xl_8E2A.pt")
    torch.save(weights(8), top / "dit_moe_s_8E2A.pt")
    torch.save({"ema": weights(0)}, top / "DiT-XL-2-256x256.pt")
