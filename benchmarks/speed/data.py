"""How long training waits for data, the memory that takes, and the cost of listing: python -m benchmarks.speed.data

    [waits] [memory] [listing]     parts, by default all
    --steps 40 --step 0.05         batches, and seconds of the sleep that stands in for the device's step
    --size 64                      samples of a batch
    --batches 10000                over which memory is watched
    --files 200000                 that are listed
    --place /dev/shm               where files are made, and removed again

Waits: the share of time in which the model would stand still, when batches are read between steps (0 workers) or ahead.
Beside it the upper limit: what one core decodes per second of processor time, and the share of waiting that remains
when all cores do nothing else. Other work on the machine adds to the waits; a longer --step then shows whether reading
is hidden. Memory is that of the process and its workers (proportional set size). Listing is compared with `os.walk`,
interleaved in the same run, in processor time.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.speed.timing import interleaved, table
from ditmoe.training.batches import Reading
from ditmoe.training.read_ahead import ReadAhead
from modalities.image import Pictures
from modalities.image.data.catalogue import list_pictures
from modalities.pointcloud import Clouds
from modalities.video import Clips
from modalities.video.io import writer

PARTS = ("waits", "memory", "listing")
SAMPLES = 256
"""Files of each kind, read again and again: what is measured is decoding, not the disk."""


def _noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Pictures that compress about as well as photographs."""
    coarse = rng.integers(0, 255, (*(n // 8 for n in shape), 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))


def make_pictures(root: Path, rng: np.random.Generator) -> Any:
    """JPEGs of 256 x 256."""
    (root / "train" / "one").mkdir(parents=True)
    for i in range(SAMPLES):
        fine = rng.normal(scale=6, size=(256, 256, 1))
        picture = np.clip(_noise(rng, 256, 256) + fine, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(root / "train" / "one" / f"{i}.jpg", quality=90)
    return Pictures((256, 256), root)


def make_clips(root: Path, rng: np.random.Generator) -> Any:
    """H.264 of 33 frames, 64 x 64, of which 17 are taken."""
    (root / "train" / "one").mkdir(parents=True)
    for i in range(SAMPLES // 2):
        whole = _noise(rng, 128, 128)
        frames = np.stack([whole[t : t + 64, t : t + 64] for t in range(33)])
        writer.write_mp4(root / "train" / "one" / f"{i}.mp4", frames, 8)
    return Clips(root, (64, 64), 17)


def make_clouds(root: Path, rng: np.random.Generator) -> Any:
    """Clouds of 15,000 points, of which 2,048 are drawn and augmented."""
    for split in ("train", "test"):
        (root / "one" / split).mkdir(parents=True)
        for i in range(SAMPLES if split == "train" else 2):
            np.save(root / "one" / split / f"{i}.npy", rng.normal(size=(15_000, 3)).astype(np.float32))
    clouds = Clouds(root, num_points=2048, mirror=True, scale_jitter=0.2)
    assert clouds.scale  # computed now: it is not part of a batch
    return clouds


KINDS: dict[str, Callable[[Path, np.random.Generator], Any]] = {
    "JPEGs of 256 x 256": make_pictures,
    "clips of 17 x 64 x 64": make_clips,
    "clouds of 2,048 points": make_clouds,
}


def waited(source: Callable[[int], Any], steps: int, step: float, first: int = 4) -> float:
    """Share of the time in which a device that sleeps for each step waits for batches, after the first few."""
    wait = 0.0
    for i in range(first + steps):
        start = time.perf_counter()
        source(i)
        if i >= first:
            wait += time.perf_counter() - start
        time.sleep(step)
    return wait / (wait + steps * step)


def waits(place: Path, options: argparse.Namespace) -> None:
    """Print the share of waiting for each kind of data and number of workers."""
    cores = len(os.sched_getaffinity(0))
    print(f"a step of {1e3 * options.step:.0f} ms, batches of {options.size}, {cores} cores")
    for name, make in KINDS.items():
        data = make(place / name, np.random.default_rng(0))
        read = Reading(data.batch, options.size, 0, seed=0, rank=0, world=1)
        read(0)
        start = time.process_time()
        for i in range(1, 4):
            read(i)
        cost = (time.process_time() - start) / 3  # all threads together
        lowest = max(0.0, 1 - options.step * cores / cost)
        line = f"  {name:24s}{options.size / cost:8.0f} samples/s a core, {cores} cores must wait {lowest:5.1%}; waited"
        for workers in (0, 1, 2):
            with ReadAhead(read, 10**9, workers) as source:
                line += f"   {workers} workers {waited(source, options.steps, options.step):5.1%}"
        print(line, flush=True)


def own_memory(process: int | str = "self") -> int:
    """Bytes of a process and of those that it started, shared ones by their share."""
    total = 0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total = int(line.split()[1]) * 1024
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += own_memory(int(child))
    except OSError:
        pass
    return total


def memory(place: Path, options: argparse.Namespace) -> None:
    """Print the memory of the run and its workers after shares of the batches."""
    data = make_pictures(place / "memory", np.random.default_rng(0))
    read = Reading(data.batch, 4, 0, seed=0, rank=0, world=1)
    shown = {int(options.batches * share) for share in (0.02, 0.1, 0.25, 0.5, 0.75, 1)}
    print(f"memory over {options.batches} batches of 4 JPEGs, 1 worker")
    with ReadAhead(read, 10**9, 1) as source:
        for i in range(options.batches):
            source(i)
            if i + 1 in shown:
                print(f"  {i + 1:8d} batches {own_memory() / 2**20:8.1f} MB", flush=True)


def listing(place: Path, options: argparse.Namespace) -> None:
    """Print what listing costs against `os.walk`, without and with the index, and the memory of the list."""
    root, cache, folders = place / "listing", place / "cache", max(1, options.files // 1000)
    print(f"listing {options.files} files in {folders} folders, class folders without splits")
    for k in range(folders):
        (root / f"n{k:08d}").mkdir(parents=True)
        for i in range(options.files // folders):
            (root / f"n{k:08d}" / f"n{k:08d}_{7 * i}.JPEG").touch()
    time.sleep(2.5)  # folders that have just changed are not indexed
    before = own_memory()
    kept = list_pictures(root, (32, 32), cache)
    print(
        f"  the list takes {(own_memory() - before) / 2**20:.0f} MB, its train split {len(kept.pictures['train'])}"
    )
    del kept
    variants = {
        "os.walk": lambda: sum(len(files) for _, _, files in os.walk(root)),
        "first start": lambda: list_pictures(root, (32, 32)),
        "later starts, by the index": lambda: list_pictures(root, (32, 32), cache),
    }
    print("\n".join(table(interleaved(variants, 3, torch.device("cpu")), "os.walk")))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=" ".join(PARTS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--step", type=float, default=0.05)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--place", type=Path, default=None)
    options = parser.parse_args()
    if wrong := set(options.parts) - set(PARTS):
        sys.exit(f"parts must be of {', '.join(PARTS)}, got {', '.join(sorted(wrong))}")
    with TemporaryDirectory(dir=options.place) as folder:
        for name in options.parts or PARTS:
            {"waits": waits, "memory": memory, "listing": listing}[name](Path(folder), options)


if __name__ == "__main__":
    main()
