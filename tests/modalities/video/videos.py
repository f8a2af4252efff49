"""Videos of numbered frames, in the containers and codecs that people have."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

NUM, HEIGHT, WIDTH = 40, 48, 64


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame that carries its number as a bar code, and a patch that moves."""
    frame = np.full((height, width, 3), 40, np.uint8)
    for bit in range(8):
        frame[:16, bit * 8 : (bit + 1) * 8] = 255 * (number >> bit & 1)
    frame[20:40, number * 3 % 56 : number * 3 % 56 + 8] = [200, 80, 30]
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that a frame carries, whatever a codec did to it."""
    return sum(1 << bit for bit in range(8) if frame[4:12, bit * 8 + 2 : bit * 8 + 6].mean() > 128)


def make(
    path: Path,
    codec: str = "libx264",
    gop: int = 12,
    num: int = NUM,
    pixels: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    times: Sequence[int] | None = None,
    rotation: tuple[int, bool] | None = None,
    faststart: bool = False,
    first: int = 0,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> Path:
    """Write frames `first` and on with a bar code; `times` are in ms, `rotation` is (degrees, mirrored)."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, 25, options=dict(options or {}))
        stream.height, stream.width = size
        stream.pix_fmt, stream.gop_size = pixels, gop
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        for i in range(num):
            frame = av.VideoFrame.from_ndarray(picture(first + i, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(source: Path, target: Path, start: int) -> Path:
    """Copy packets from the keyframe before frame `start`, which gets time 0: `ffmpeg -ss -c copy`."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = [packet for packet in old.demux(stream) if packet.size]
        zero = sorted(packet.pts for packet in packets)[start]
        first = max(i for i, p in enumerate(packets) if p.is_keyframe and p.pts <= zero)
        for packet in packets[first:]:
            packet.pts -= zero
            packet.dts = None if packet.dts is None else packet.dts - zero
            packet.stream = copy
            new.mux(packet)
    return target


def sequential(path: Path) -> np.ndarray:
    """The truth: the container decoded from its first packet to its last."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def b_frames(more: str = "") -> dict[str, str]:
    return {"x264-params": f"bframes=3:scenecut=0{more}"}


RNG_TIMES = np.cumsum(np.random.default_rng(7).integers(10, 90, NUM)).tolist()

FILES: dict[str, Callable[[Path], Path]] = {
    "g12.mp4": lambda p: make(p, options=b_frames()),
    "g250.mp4": lambda p: make(p, gop=250, options=b_frames()),
    "faststart.mp4": lambda p: make(p, options=b_frames(), faststart=True),
    "opengop.mkv": lambda p: make(p, options=b_frames(":open-gop=1")),
    "refresh.mp4": lambda p: make(p, options={"x264-params": "bframes=0:intra-refresh=1"}),
    "mpeg4.avi": lambda p: make(p, "mpeg4"),
    "mpeg4b.avi": lambda p: make(p, "mpeg4", options={"bf": "2"}),
    "vp9.webm": lambda p: make(p, "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "vp8.webm": lambda p: make(p, "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "hevc.mp4": lambda p: make(
        p, "libx265", options={"preset": "ultrafast", "x265-params": "log-level=none"}
    ),
    "vfr.mp4": lambda p: make(p, options=b_frames(), times=RNG_TIMES),
    "edit.mp4": lambda p: cut(make(p.with_name("a.mp4"), options=b_frames()), p, 17),
    "edit250.mp4": lambda p: cut(make(p.with_name("b.mp4"), gop=250, options=b_frames()), p, 9),
    "leading.mkv": lambda p: cut(make(p.with_name("c.mkv"), options=b_frames(":open-gop=1")), p, 14),
    "transport.ts": lambda p: make(p, options=b_frames()),
    "program.mpg": lambda p: make(p, "mpeg2video"),
    "ffv1.mkv": lambda p: make(p, "ffv1", pixels="bgr0"),
    "one.mp4": lambda p: make(p, num=1),
}


def truncate(source: Path, part: float = 0.6) -> Path:
    target = source.with_name(f"cut-{source.name}")
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * part)])
    return target


def write_frames(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:05d}.png")
