"""Transparent videos lie on white, whichever way a container keeps what is transparent."""

from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest

from modalities.video.io.container import Unreadable
from modalities.video.io.reader import read_clip, read_index

NUM, HEIGHT, WIDTH = 20, 48, 64
KINDS = {
    "vp9.webm": ("libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "crf": "5", "deadline": "realtime"}),
    "vp8.webm": ("libvpx", "yuva420p", {"auto-alt-ref": "0", "crf": "5", "deadline": "realtime"}),
    "vp9.mkv": ("libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "crf": "5", "deadline": "realtime"}),
    "qtrle.mov": ("qtrle", "argb", {}),
    "ffv1.mkv": ("ffv1", "bgra", {}),
}


def pictures() -> np.ndarray:
    """Frames (T, H, W, 4) of one grey each; red is hidden on the left, half of it is seen in the middle."""
    frames = np.zeros((NUM, HEIGHT, WIDTH, 4), np.uint8)
    frames[..., :3] = (np.arange(NUM) * 10)[:, None, None, None]
    frames[:, :, :16] = 250, 0, 0, 0
    frames[..., 16:32, 3] = 128
    frames[..., 32:, 3] = 255
    return frames


def write(path: Path, codec: str, pixels: str, options: dict[str, str], rotation: int = 0) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 25, options=options)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = HEIGHT, WIDTH, pixels, 6
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", KINDS)
def test_what_is_transparent_lies_on_white(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, *KINDS[name])
    frames = pictures().astype(float)
    truth = frames[..., :3] * frames[..., 3:] / 255 + 255 - frames[..., 3:]
    index = read_index(path)
    assert len(index) == NUM
    for start, count, stride in ((0, NUM, 1), (7, 3, 2), (19, 1, 1)):  # from keyframes, too
        clip = read_clip(path, start, count, stride, index=index).astype(float)
        off = np.abs(clip - truth[start : start + (count - 1) * stride + 1 : stride])
        for part in (np.s_[:12], np.s_[20:28], np.s_[36:]):  # edges are blurred
            assert off[:, 4:-4, part].max() < 12


def test_what_is_transparent_and_turned_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.webm", *KINDS["vp9.webm"], rotation=90)
    with pytest.raises(Unreadable, match=r"^\S*a\.webm must be upright where it is transparent, [^\n]*$"):
        read_clip(path, 0, 2)


def test_damage_of_what_is_transparent_is_told(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.webm", *KINDS["vp9.webm"]).read_bytes()
    rng = np.random.default_rng(0)
    for number in range(30):
        data = bytearray(whole)
        for at in rng.integers(300, len(data), 4):
            data[at] ^= int(rng.integers(1, 256))
        path = tmp_path / f"{number}.webm"
        path.write_bytes(data)
        with suppress(Unreadable):  # whose words are one line
            assert read_clip(path, 0, 3).shape == (3, HEIGHT, WIDTH, 3)
