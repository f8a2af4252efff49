"""What video costs: python -m benchmarks.speed.video [--parts reader codec sampling i3d] [--files folder] [--workers 2]

- reader: clips per second (16 frames, stride 3, random places) against a bare decoder that knows where to seek, takes
  frames as they come and checks nothing; same files, places and threads for both.
- codec: clips per second that the built-in autoencoder encodes and decodes, against its linear part (principal
  components) alone.
- sampling: a clip of the default model in its default steps, denoising and decoding; random weights take as long.
- i3d: clips of 16 x 224 x 224, with kernels whose channels are last in memory against first.

Each is interleaved in one process (`benchmarks.speed.timing`): medians of the seconds and of the ratios. On a CPU these
are processor seconds; for threads also wall seconds, which depend on the other work of the machine.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch

from benchmarks import options_of
from benchmarks.speed.timing import Seconds, interleaved, ratio, table
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.diffusion import Sampling
from ditmoe.inference import draw
from ditmoe.outside import device as own_device
from modalities.shared import frechet
from modalities.video.data.catalogue import find_videos
from modalities.video.io.index import Index
from modalities.video.io.reader import read_clip, read_index
from modalities.video.metrics import i3d
from modalities.video.metrics.features import prepared

FRAMES, STRIDE = 16, 3
KINDS = {
    "h264 key every 12": ("mp4", "libx264", 12),
    "h264 key every 250": ("mp4", "libx264", 250),
    "mpeg4 avi": ("avi", "mpeg4", 12),
    "vp9 webm": ("webm", "libvpx-vp9", 60),
}


def write(path: Path, codec: str, gop: int, num: int = 300, height: int = 240, width: int = 320) -> None:
    """A video of a moving pattern with some noise, so that there is something to decode."""
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (height // 8, width // 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        fast = {"libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}, "libx264": {"preset": "veryfast"}}
        stream = container.add_stream(codec, 25, options=fast.get(codec, {}))
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = height, width, "yuv420p", gop
        for i in range(num):
            picture = wide[:, i : i + width] // 2 + rng.integers(0, 24, (height, width, 1), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def bare(path: Path, wanted: np.ndarray, index: Index) -> list[np.ndarray]:
    """The frames of a clip with nothing more than PyAV's own calls."""
    times = index.times[wanted]
    chosen, pictures = set(times.tolist()), []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        container.seek(int(index.keys[np.searchsorted(index.keys, times[0], "right") - 1]), stream=stream)
        for frame in container.decode(stream):
            if frame.pts in chosen:
                pictures.append(frame.to_ndarray(format="rgb24", threads=1))
            if frame.pts >= times[-1]:
                break
    return pictures


def reader(files: Sequence[Path], workers: int, clips: int, rounds: int) -> None:
    rng = np.random.default_rng(0)
    indices = {file: read_index(file) for file in files}
    long = [file for file in files if len(indices[file]) > FRAMES * STRIDE and len(indices[file].keys)]
    if not long:
        raise ValueError(f"--files must hold videos of more than {FRAMES * STRIDE} frames, got none")
    chosen = [long[i % len(long)] for i in range(clips)]
    starts = [int(rng.integers(len(indices[file]) - FRAMES * STRIDE)) for file in chosen]

    def ours(file: Path, start: int) -> Sequence[np.ndarray]:
        return read_clip(file, start, FRAMES, STRIDE, index=indices[file])

    def theirs(file: Path, start: int) -> Sequence[np.ndarray]:
        return np.stack(bare(file, start + STRIDE * np.arange(FRAMES), indices[file]))

    for file, start in zip(chosen, starts, strict=True):
        assert np.array_equal(ours(file, start), theirs(file, start)), file
    for threads in (1, workers):
        pool = ThreadPoolExecutor(threads)
        wall: dict[str, list[float]] = {"bare": [], "reader": []}

        def turn(name: str, work: Callable) -> None:
            begun = time.perf_counter()
            list(pool.map(work, chosen, starts))  # noqa: B023
            wall[name].append(time.perf_counter() - begun)  # noqa: B023

        seconds = interleaved(
            {"bare": lambda: turn("bare", theirs), "reader": lambda: turn("reader", ours)},
            rounds,
            torch.device("cpu"),
        )
        wall = {name: each[1:] for name, each in wall.items()}
        for kind, of in (("processor", seconds), ("wall", wall)):
            rate = {name: clips / statistics.median(each) for name, each in of.items()}
            each = sorted(a / b for a, b in zip(of["bare"], of["reader"], strict=True))
            print(
                f"  {threads} threads, {kind:9s}: bare {rate['bare']:6.1f} clips/s, reader {rate['reader']:6.1f}, "
                f"reaches {1 / ratio(of, 'reader', 'bare'):.3f} ({each[0]:.3f} .. {each[-1]:.3f})"
            )
        pool.shutdown()


def codec(rounds: int, num: int = 8) -> None:
    config = composed("train", ["modality=video", "modality.codec.steps=0"])
    modality = build.make_modality(config)
    clips = torch.rand(num, 3, modality.frames, *modality.size) * 2 - 1
    whole, linear = modality.codec.cpu(), modality.codec.linear.cpu()
    padded = torch.cat([clips[:, :, :1].expand(-1, -1, whole.stride[0] - 1, -1, -1), clips], dim=2)
    with torch.no_grad():
        z = whole.encode(clips)
        turns = {
            "encode": lambda: whole.encode(clips),
            "encode, linear part": lambda: linear.encode(padded),
            "decode": lambda: whole.decode(z),
            "decode, linear part": lambda: linear.decode(z),
        }
        seconds = interleaved(turns, rounds, torch.device("cpu"))
    print(f"codec: {num} clips of {' x '.join(map(str, clips.shape[2:]))}, latents {tuple(z.shape[1:])}")
    rates(seconds, num)
    print("\n".join(table(seconds, "encode")))


def sampling(rounds: int, num: int = 4) -> None:
    config = composed("train", ["modality=video", "modality.codec.steps=0"])
    modality = build.make_modality(config)
    device = own_device()
    model = build.make_model(config, modality).to(device).eval()
    process, settings = build.make(config["process"]), Sampling(**config["sampling"])
    asked = model.conditioning.ask(num, modality.classes)

    def denoise() -> torch.Tensor:
        scheduler = build.make(config["scheduler"])
        return draw(model, modality, process, scheduler, settings, asked, seed=0)

    x = denoise()
    turns = {"denoise": denoise, "decode": lambda: modality.decode(x)}
    print(f"sampling: {num} clips at once, {settings.steps} steps, guidance {settings.guidance}, on {device}")
    seconds = interleaved(turns, rounds, device)
    for name, each in seconds.items():
        print(f"  {name:30s}{statistics.median(each) / num:10.3f} s a clip")


def features(rounds: int, num: int = 2) -> None:
    device = own_device()
    try:
        last, _ = i3d.load(device=str(device))
    except ValueError as error:
        print(f"i3d: left out, {error}")
        return
    first = {name: value.contiguous() for name, value in last.items()}
    clips = torch.rand(num, 3, FRAMES, 224, 224, device=device) * 2 - 1
    with torch.inference_mode():
        turns = {
            "channels last": lambda: i3d.logits(last, clips),
            "channels first": lambda: i3d.logits(first, clips),
        }
        seconds = interleaved(turns, rounds, device)
        check = [frechet.Statistics.of(black_or_white(last, v, device)) for v in (0, 255)]
    print(
        f"i3d: {num} clips at once, on {device}; published check {frechet.distance(*check):.5f}, original 151.39244"
    )
    rates(seconds, num)
    print("\n".join(table(seconds, "channels first")))


def black_or_white(network: i3d.Weights, value: int, device: torch.device) -> np.ndarray:
    clip = prepared(np.full((1, 30, 64, 64, 3), value, np.uint8), "whole").to(device)
    return i3d.logits(network, clip).cpu().numpy().repeat(8, axis=0)


def rates(seconds: Seconds, num: int) -> None:
    for name, each in seconds.items():
        print(f"  {name:30s}{num / statistics.median(each):10.2f} clips/s")


def main() -> None:
    parser = options_of(__doc__)
    parts = ["reader", "codec", "sampling", "i3d"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--files", type=Path, help="videos to read besides the ones that are made")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    machine = platform.processor() or platform.machine()
    print(
        f"{machine}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}", end=""
    )
    print(f" with {torch.get_num_threads()} threads, PyAV {av.__version__}")
    if "reader" in options.parts:
        with TemporaryDirectory() as name:
            for kind, (suffix, encoder, gop) in KINDS.items():
                file = Path(name) / f"{gop}.{suffix}"
                write(file, encoder, gop)
                print(f"reader, {kind}, 320 x 240")
                reader([file], options.workers, options.clips, options.rounds)
        if options.files:
            print(f"reader, {options.files}")
            reader(find_videos(options.files), options.workers, options.clips, options.rounds)
    for name, work in {"codec": codec, "sampling": sampling, "i3d": features}.items():
        if name in options.parts:
            work(options.rounds)


if __name__ == "__main__":
    main()
