"""Clip sets from other programs: arrays, folders of videos, folders of frame folders."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from ditmoe.modality import Samples
from ditmoe.outside import printable, tell
from modalities.shared.understood import Ignored
from modalities.video.data.catalogue import find_videos
from modalities.video.io.container import Unreadable
from modalities.video.io.frame_folders import ARRAYS, read_arrays
from modalities.video.io.index import Index
from modalities.video.io.reader import read_clip, read_index
from modalities.video.io.writer import is_lossless

OURS = "samples.gif"
"""The file that `sample` writes beside the clips, which is not a clip of the set."""
_NAMED = 5


class FileVideo:
    """A video on disk that behaves like an array (T, H, W, 3) and reads only the frames requested.

    Attributes:
        shape: (T, H, W, 3).
        dtype: uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, index: Index) -> None:
        self.path, self.index = path, index
        self.shape = len(index), index.height, index.width, 3

    def __getitem__(self, frames: Int64[np.ndarray, " F"]) -> UInt8[np.ndarray, "F H W 3"]:
        """Frames by equally spaced indices.

        Raises:
            Unreadable: if they cannot be decoded.
        """
        stride = int(frames[1] - frames[0]) if len(frames) > 1 else 1
        return read_clip(self.path, int(frames[0]), len(frames), stride, index=self.index)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[np.arange(len(self.index))]


@dataclass(frozen=True)
class ReadClips(Samples):
    """A set from files: `data` is an array (S, T, H, W, 3), or (S,) of lazily read videos.

    Attributes:
        lossy: number of files that may be lossy; None if unknown.
        left_out: number of unreadable files.
    """

    lossy: int | None = None
    left_out: int = 0


def read_set(path: Path) -> ReadClips:
    """Read a set: an .npz with `videos` (N, T, H, W, 3) uint8, an .npy of that shape, or a folder of videos.

    Videos may differ in length and size. If a clip exists in several formats, the lossless one is read; unreadable
    ones are named on stderr, left out and counted.

    Raises:
        ValueError: if nothing can be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)} does not exist")
    if path.is_file() and path.suffix.lower() in ARRAYS:
        return ReadClips(read_arrays(path))
    videos: list[FileVideo] = []
    names: list[str] = []
    lossy = left_out = 0
    ignored = Ignored()
    files = one_each(find_videos(path, ignored) if path.is_dir() else [path])
    for line in ignored.lines():
        tell(f"{path}: ignored {line}", sys.stdout)
    for file in files:
        try:
            video, lossless = FileVideo(file, read_index(file)), is_lossless(file)
        except Unreadable as error:
            left_out += 1
            if left_out <= _NAMED:
                tell(f"left out: {error}")
            continue
        videos.append(video)
        names.append(printable(file.stem))
        lossy += not lossless
    if not videos:
        raise ValueError(f"{printable(path)} must hold readable videos, got {left_out} others")
    data = np.empty(len(videos), object)
    data[:] = videos
    return ReadClips(data, names=names, lossy=lossy, left_out=left_out)


def one_each(files: list[Path]) -> list[Path]:
    """Of files that differ only in their suffix, keep one, the lossless one."""
    best: dict[Path, Path] = {}
    for file in sorted(files, key=lambda f: (f.suffix == ".mkv", f)):
        if file.name != OURS:
            best[file if file.is_dir() else file.with_suffix("")] = file
    return sorted(best.values())
