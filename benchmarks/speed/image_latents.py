"""What latents on disk save: python -m benchmarks.speed.image_latents [--size 64] [--batch 4] [--rounds 4]

A training step of the default image model that reads and encodes its pictures, against the same step on latents that
`prepare` wrote, interleaved in one process. The autoencoder has the architecture of Stable Diffusion's, with random
weights (its cost does not depend on them); the pictures are JPEG files of twice the needed size.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from benchmarks import options_of
from benchmarks.speed.timing import interleaved, table
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.outside import device as own_device
from ditmoe.train import make_trainer
from ditmoe.training import Trainer


def pictures(folder: Path, num: int, size: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(num):
        place = folder / "train" / f"class{i % 4}"
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        small.resize((2 * size, 2 * size), Image.Resampling.BICUBIC).save(place / f"{i}.jpg", quality=90)


def config(command: str, *overrides: str) -> dict:
    return composed(command, overrides)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    device = own_device()
    with TemporaryDirectory() as name:
        folder = Path(name)
        pictures(folder / "pictures", 8 * options.batch, options.size)
        blocks = 4
        AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * blocks,
            up_block_types=["UpDecoderBlock2D"] * blocks,
        ).save_pretrained(folder / "vae")
        common = [
            "modality=image", "codec@modality.codec=autoencoder", f"modality.codec.path={folder / 'vae'}",
            f"modality.size=[{options.size},{options.size}]",
        ]  # fmt: skip
        start = time.perf_counter()
        prepare = config("prepare", *common, "source=x", "out=y")
        build.make(prepare["modality"]).prepare(folder / "pictures", folder / "latents")
        print(f"prepare: {8 * options.batch} pictures in {time.perf_counter() - start:.1f} s")

        def trainer(*more: str) -> Trainer:
            chosen = config("train", *common, f"trainer.batch_size={options.batch}", *more)
            return make_trainer(chosen, build.make_modality(chosen), folder / "run")

        variants = {
            "latents on disk": trainer(f"modality.latents={folder / 'latents'}"),
            "encoded on the way": trainer(f"modality.data.root={folder / 'pictures'}"),
        }

        def step(trainer: Trainer) -> None:
            trainer._train_step()
            trainer.step += 1

        turns = {name: (lambda t=t: step(t)) for name, t in variants.items()}
        print(f"{device}, {options.size} x {options.size} pixels, batch {options.batch}, a training step:")
        print("\n".join(table(interleaved(turns, options.rounds, torch.device(device)), "latents on disk")))


if __name__ == "__main__":
    main()
