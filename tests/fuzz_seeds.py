"""Valid files of every kind, tiny, and who reads them: where `tests.fuzz` begins."""

import json
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import trimesh
from PIL import Image
from safetensors.torch import load_file, save_file

import ditmoe
from ditmoe import checkpoint
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.config.restore import restore
from ditmoe.export import export
from ditmoe.inference import draw_from
from ditmoe.pipelines.card import metrics_line
from ditmoe.pretrained import convert_file, published, weights
from ditmoe.train import make_trainer
from ditmoe.training.resume import resume
from modalities.image import Pictures
from modalities.image.data import picture_sets as images
from modalities.image.data.pictures import open_picture
from modalities.image.metrics import compbench, geneval
from modalities.image.metrics.features import read_reference
from modalities.pointcloud.data import formats
from modalities.pointcloud.data.channels import Channels
from modalities.pointcloud.data.ply import write_ply
from modalities.shared import cache
from modalities.video.data import clip_folders
from modalities.video.io.reader import read_clip, read_index
from tests.fuzz import Reader
from tests.fuzz_spoiling import spoil_checkpoint

SLOW = 0.25
TINY = [
    "model=debug",
    "trainer.batch_size=2",
    "trainer.steps=1",
    "trainer.preview_every=0",
    "sampling.steps=1",
]
CLOUD = ["modality=pointcloud", "modality.num_points=64", "modality.tokens.resolution=8"]
IMAGE = ["modality=image", "modality.size=[8,8]", "modality.codec.channels=3"]


def settings(*words: str) -> dict[str, Any]:
    return composed("train", [*TINY, *words])


def trained(folder: Path, *words: str) -> Path:
    config = settings(*words)
    make_trainer(config, build.make_modality(config), folder).run()
    return folder


def sampled(path: Path) -> None:
    """As the command does it."""
    restored = restore(path)
    draw_from(restored, restored.model.conditioning.read(torch.zeros(1, dtype=torch.long)), steps=1)


def clouds(place: Path) -> list[Path]:
    points = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    np.save(place / "a.npy", points)
    np.savez(place / "a.npz", points=points)
    torch.save(torch.from_numpy(points), place / "a.pt")
    text = "\n".join(" ".join(map(str, row)) for row in points.tolist())
    for name in ("a.xyz", "a.txt", "a.pts"):
        (place / name).write_text(text)
    write_ply(place / "a.ply", points)
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    head = f"ply\nformat ascii 1.0\nelement vertex 40\n{axes}end_header\n"
    (place / "b.ply").write_text(head + text)
    return sorted(place.iterdir())


EVERYTHING = Channels(("xyz", "rgb", "normals"))


def coloured(place: Path) -> list[Path]:
    """With colours and normals."""
    rng = np.random.default_rng(0)
    points, colours = rng.random((40, 3)).astype(np.float32), rng.integers(0, 256, (40, 3)).astype(np.uint8)
    normals = np.tile(np.float32([0, -1, 0]), (40, 1))
    rows = np.concatenate([points, normals, colours], axis=1)
    np.save(place / "a.npy", rows)
    np.savez(place / "a.npz", points=points, rgb=colours, normals=normals)
    write_ply(place / "a.ply", points, colours, normals)
    text = "\n".join(" ".join(map(str, row)) for row in rows.tolist())
    (place / "a.csv").write_text("x y z nx ny nz r g b\n" + text)
    (place / "a.off").write_text("CNOFF\n40 0 0\n" + text)
    fields = "x y z normal_x normal_y normal_z r g b"
    head = (
        f"FIELDS {fields}\nSIZE{' 4' * 9}\nTYPE{' F' * 9}\nCOUNT{' 1' * 9}\nWIDTH 40\nHEIGHT 1\nPOINTS 40\n"
    )
    (place / "a.pcd").write_text(f"{head}DATA ascii\n{text}")
    (place / "b.pcd").write_bytes(f"{head}DATA binary\n".encode() + rows.astype("<f4").tobytes())
    return sorted(place.iterdir())


def meshes(place: Path) -> list[Path]:
    box = trimesh.creation.box()
    for ending in ("obj", "ply", "stl", "glb", "off"):
        box.export(place / f"box.{ending}")
    (place / "ascii.stl").write_text(trimesh.exchange.stl.export_stl_ascii(box))
    (place / "ascii.ply").write_bytes(trimesh.exchange.ply.export_ply(box, encoding="ascii"))
    data = trimesh.exchange.gltf.export_gltf(box)
    for name, content in data.items():
        if name.endswith(".gltf"):
            (place / "box.gltf").write_bytes(content)
    return sorted(f for f in place.iterdir())


def pictures(place: Path) -> list[Path]:
    array = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    for ending in ("png", "jpg", "webp", "bmp", "gif", "tif", "ppm"):
        image.save(place / f"a.{ending}")
    image.convert("L").save(place / "grey.png")
    Image.fromarray(array[..., 0].astype(np.uint16) * 200).save(place / "deep.png")
    image.convert("RGBA").quantize(16).save(place / "palette.png")
    return sorted(place.iterdir())


def videos(place: Path) -> list[Path]:
    for name, codec in {
        "a.mp4": "libx264",
        "a.mkv": "ffv1",
        "a.webm": "libvpx-vp9",
        "a.avi": "mjpeg",
        "a.mpg": "mpeg4",
    }.items():
        if name == "a.mpg":
            name = "b.mov"
        with av.open(str(place / name), "w") as container:
            stream = container.add_stream(codec, 25)
            stream.width, stream.height = 48, 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for i in range(8):
                frame = np.full((32, 48, 3), 20 * i, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    frames = [Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)) for i in range(4)]
    frames[0].save(place / "a.gif", save_all=True, append_images=frames[1:])
    return sorted(place.iterdir())


def read_video(path: Path) -> None:
    index = read_index(path)
    read_clip(path, 0, min(4, len(index)), index=index)
    read_clip(path, 0, 2, salvage=True)


def shards(place: Path) -> list[Path]:
    """A webdataset's tar in a folder."""
    root = place / "shards"
    root.mkdir()
    picture = pictures_bytes()
    with tarfile.open(root / "train-000.tar", "w") as tar:
        for i in range(6):
            for ending, content in (
                ("png", picture),
                ("cls", str(i % 2).encode()),
                ("json", b'{"label": 1}'),
            ):
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
    return [root]


def pictures_bytes() -> bytes:
    stream = BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def dit(place: Path) -> list[Path]:
    """Weights under DiT-MoE's and DiT's names."""
    files = []
    for family, sparse in (("DiT-MoE", (0, 1)), ("DiT", ())):
        arch = published.Architecture(family, 2, 32, 2, 3, 2, 4, 8, 4, sparse, 4 if sparse else 0, 64 if sparse else 0,
                                      128 if sparse else 0, 0 if sparse else 128, False, False)  # fmt: skip
        with torch.device("meta"):
            model = weights.make(arch.config(2, 1.0))
        made: dict[str, torch.Tensor] = {}
        for recipe in published.recipes(model, arch).values():
            made |= {key: torch.randn(recipe.shape) for key in recipe.keys}
        torch.save({"ema": made}, place / f"{family}.pt")
        save_file(made, place / f"{family}.safetensors")
        files += [place / f"{family}.pt", place / f"{family}.safetensors"]
    return files


def lora(pipeline: Path, file: Path) -> Path:
    """For one matrix and one stack of experts of a pipeline's model."""
    weights = load_file(pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
    state: dict[str, torch.Tensor] = {}
    for name, end in (("attention.qkv", ".weight"), ("feed_forward.experts.up", "")):
        key = next(key for key in weights if key.endswith(f"{name}{end}"))
        *lead, out, width = weights[key].shape
        place = f"transformer.{key.removesuffix('.weight')}"
        state |= {
            f"{place}.lora_A{end}": torch.ones(*lead, 2, width),
            f"{place}.lora_B{end}": torch.ones(*lead, out, 2),
        }
    save_file(state, file)
    return file


def kept(path: Path) -> Mapping[str, np.ndarray] | None:
    return cache.load(path, {"mu": ("f8", ("F",)), "sigma": ("f8", ("F", "F"))})


def npz(place: Path) -> Mapping[str, list[Path]]:
    rng = np.random.default_rng(0)
    np.savez(place / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4), mu_s=np.zeros(3), sigma_s=np.eye(3))
    np.savez(place / "pictures.npz", arr_0=rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))
    np.savez(place / "clouds.npz", points=rng.random((3, 20, 3)), labels=np.arange(3))
    np.savez(place / "videos.npz", videos=rng.integers(0, 256, (2, 4, 8, 8, 3), dtype=np.uint8))
    np.save(place / "videos.npy", rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    return {name: [place / f for f in files] for name, files in {
        "reference": ["statistics.npz", "pictures.npz"], "pictures": ["pictures.npz"], "clouds": ["clouds.npz"],
        "videos": ["videos.npz", "videos.npy"], "cache": ["statistics.npz"],
    }.items()}  # fmt: skip


def requirements(file: Path) -> Path:
    dog, red = {"class": "dog", "count": 1}, {"color": "red", "position": ["above", 0]}
    line = {"tag": "position", "include": [dog, dog | red], "exclude": [dog], "prompt": "two dogs"}
    file.write_text(json.dumps(line) + "\n" + json.dumps(line | {"prompt": "a dog"}) + "\n")
    return file


def phrases(file: Path) -> Path:
    line = {"tag": "color", "prompt": "a red book and a cup", "phrases": ["a red book", "a cup"]}
    file.write_text(json.dumps(line) + "\n" + json.dumps({"tag": "shape", "prompt": "a round cup"}) + "\n")
    return file


def readers(place: Path) -> list[Reader]:
    for name in ("clouds", "coloured", "meshes", "pictures", "videos", "npz", "dit"):
        (place / name).mkdir()
    cloud, image = trained(place / "cloud", *CLOUD), trained(place / "image", *IMAGE)
    arrays = npz(place / "npz")
    converted, pipeline, encoded = place / "converted", place / "pipeline", place / "latents"
    published_files = dit(place / "dit")
    convert_file(published_files[0], converted, size=4, num_heads=2)
    export(image, pipeline)
    folder = place / "some"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(pictures_bytes())
    build.make_modality(settings(*IMAGE)).prepare(folder, encoded)
    metrics = place / "metrics.json"
    metrics.write_text(json.dumps({"fd/pixels": 1.5, "interval": {"fd/pixels": [1, 2]}, "notes": ["a"]}))
    config = settings(*CLOUD)

    data_facts = checkpoint.find(cloud).part("facts")

    def goes_on(path: Path) -> None:
        resume(make_trainer(config, build.make_modality(config, data_facts), path), config)

    def drawn(path: Path) -> None:
        ditmoe.Pipeline.from_pretrained(path)(num_samples=1, num_inference_steps=1, output_type="latent")

    whole = ditmoe.Pipeline.from_pretrained(pipeline)

    def adapted(path: Path) -> None:
        try:
            whole.load_lora_weights(path)
        finally:
            whole.unload_lora_weights()

    def latent_batch(path: Path) -> None:
        words = settings(*IMAGE)
        words["modality"]["latents"] = str(path)
        build.make_modality(words).batch(2, 0, 0)

    def tokens_of(path: Path) -> None:
        model = ditmoe.load(path, "cpu")
        model(torch.zeros(1, 4, 4, 4), torch.zeros(1), torch.zeros(1, dtype=torch.long))

    return [
        Reader("checkpoint", [cloud, image], sampled, share=SLOW),
        Reader("checkpoint, sealed", [cloud, image], sampled, spoil_checkpoint, SLOW),
        Reader("checkpoint, resumed", [cloud], goes_on, spoil_checkpoint, SLOW),
        Reader("converted folder", [converted], tokens_of, share=SLOW),
        Reader(
            "published weights",
            published_files,
            lambda path: convert_file(path, path.parent / "out", size=4, num_heads=2),
        ),
        Reader("pipeline", [pipeline], drawn, share=SLOW),
        Reader("LoRA", [lora(pipeline, place / "lora.safetensors")], adapted, share=SLOW),
        Reader("clouds", clouds(place / "clouds"), formats.read_points),
        Reader(
            "coloured clouds",
            coloured(place / "coloured"),
            lambda path: formats.read_surface(path, 9, 0, channels=EVERYTHING),
        ),
        Reader("cloud sets", arrays["clouds"], formats.read_set),
        Reader("kept distances", arrays["cache"], kept),
        Reader("meshes", meshes(place / "meshes"), lambda path: formats.read_surface(path, 100, 0)),
        Reader("pictures", pictures(place / "pictures"), open_picture),
        Reader("picture sets", arrays["pictures"], images.read_set),
        Reader("requirements", [requirements(place / "requirements.jsonl")], geneval.read),
        Reader("phrases", [phrases(place / "phrases.jsonl")], compbench.read),
        Reader("references", arrays["reference"], read_reference),
        Reader("shards", shards(place), lambda path: Pictures((8, 8), root=path).batch(2, 0, 0)),
        Reader("latents", [encoded], latent_batch),
        Reader("videos", videos(place / "videos"), read_video),
        Reader("video sets", arrays["videos"], clip_folders.read_set),
        Reader("metrics", [metrics], metrics_line),
    ]
