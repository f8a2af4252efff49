"""From a published checkpoint to a first picture: size, time and memory of each command, with random weights.

    python -m benchmarks.speed.first_picture [--model DiT-MoE-S DiT-XL] [--steps 25] [--out FOLDER]

Writes a checkpoint in the published layout at full size and an AutoencoderKL as `stabilityai/sd-vae-ft-ema` has it,
converts, exports, and draws a picture of 256 x 256 with guidance. Each command runs in a process of its own, on one
thread unless OMP_NUM_THREADS is set. Times are of the processor. Weights are random, so the picture is noise. DiT-XL
needs 9 GB of disk. Without --out all files are deleted.
"""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import options_of
from ditmoe.pretrained import weights
from ditmoe.pretrained.published import Architecture, recipes

NAME = "benchmarks.speed.first_picture"
MODELS = {
    "DiT-MoE-S": ("dit_moe_s_8E2A.pt", "DiT-MoE", 12, 384, 6, False),
    "DiT-XL": ("DiT-XL-2-256x256.pt", "DiT", 28, 1152, 16, False),
}
"""File, family, depth, width, heads, and whether queries and keys are normalised."""


def write_checkpoint(name: str, folder: Path) -> Path:
    """Random weights with the published names and shapes."""
    file, family, depth, width, heads, qk_norm = MODELS[name]
    experts = 8 if family == "DiT-MoE" else 0
    arch = Architecture(
        family=family, depth=depth, hidden_size=width, num_heads=heads, num_classes=1000, patch=2, in_channels=4,
        out_channels=8, size=32, moe_layers=tuple(range(depth)) if experts else (), num_experts=experts,
        expert_width=4 * width, shared_width=2 * width, dense_width=4 * width, qk_norm=qk_norm, fused=qk_norm,
    )  # fmt: skip
    with torch.device("meta"):
        model = weights.make(arch.config(top_k=2, time_scale=1.0))
    state: dict[str, torch.Tensor] = {}
    for recipe in recipes(model, arch).values():
        state |= {key: torch.randn(recipe.shape) * 0.02 for key in recipe.keys}
    num = sum(value.numel() for value in state.values())
    print(f"{name}: {num / 1e6:.1f} M parameters", flush=True)
    torch.save(state, folder / file)
    return folder / file


def write_autoencoder(folder: Path) -> None:
    """Random weights in the shape of `stabilityai/sd-vae-ft-ema`."""
    import diffusers

    channels = (128, 256, 512, 512)
    diffusers.AutoencoderKL(
        block_out_channels=channels, layers_per_block=2, latent_channels=4, sample_size=256,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder)  # fmt: skip


def megabytes(path: Path) -> float:
    """Of a file, or of all below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def run(what: str, *words: str) -> None:
    """Run `python -m` in a process of its own; print its time and the most memory that it had."""
    start = time.perf_counter()
    arguments = [sys.executable, "-m", *words]
    child = os.spawnve(os.P_NOWAIT, sys.executable, arguments, {"OMP_NUM_THREADS": "1", **os.environ})
    _, status, used = os.wait4(child, 0)
    if status:
        sys.exit(os.waitstatus_to_exitcode(status))
    processor, wall = used.ru_utime + used.ru_stime, time.perf_counter() - start
    print(
        f"{what}: {processor:.0f} s of the processor, {wall:.0f} s in all, {used.ru_maxrss / 1e6:.2f} GB",
        flush=True,
    )


def draw(folder: Path, steps: int) -> None:
    """Draw a picture into the folder that export wrote."""
    import ditmoe

    start = time.process_time()
    pipe = ditmoe.Pipeline.from_pretrained(str(folder))
    opened = time.process_time()
    picture = pipe(label=207, num_inference_steps=steps, guidance_scale=4.0).images[0]
    taken = time.process_time() - opened
    print(
        f"opened in {opened - start:.1f} s; {steps} steps and decoding {taken:.1f} s; {picture.size} pixels"
    )
    picture.save(folder / "first.png")


def whole(name: str, folder: Path, steps: int) -> None:
    source = write_checkpoint(name, folder)
    vae, converted, pipeline = (folder / part for part in ("sd-vae-ft-ema", "converted", "pipeline"))
    write_autoencoder(vae)
    print(f"{source.name}: {megabytes(source):.0f} MB; {vae.name}/: {megabytes(vae):.0f} MB")
    run("convert", "ditmoe.convert", f"source={source}", f"out={converted}", "size=32")
    run("export", "ditmoe.export", f"checkpoint={converted}", f"autoencoder={vae}", f"out={pipeline}")
    print(f"converted/: {megabytes(converted):.0f} MB; pipeline/: {megabytes(pipeline):.0f} MB")
    for count in sorted({1, steps}):
        run(f"draw in {count} steps", NAME, "--draw", str(pipeline), "--steps", str(count))


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path, help="a new folder that keeps all files")
    parser.add_argument("--draw", type=Path, help="an exported folder, to draw alone")
    options = parser.parse_args()
    if options.draw:
        draw(options.draw, options.steps)
        return
    for name in options.model:
        with TemporaryDirectory() as scratch:
            folder = options.out / name if options.out else Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            whole(name, folder, options.steps)


if __name__ == "__main__":
    main()
