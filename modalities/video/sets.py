"""Sets of clips made elsewhere: arrays, folders of videos, folders of folders of frames."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ditmoe.modality import Samples
from modalities.video.catalogue import find_videos
from modalities.video.container import Unreadable
from modalities.video.reader import read_clip, read_index
from modalities.video.stills import ARRAYS, read_arrays
from modalities.video.writer import is_lossless

OURS = "samples.gif"
"""What `sample` writes beside the clips."""


@dataclass(frozen=True)
class ReadClips(Samples):
    """A set from files.

    Attributes:
        lossy: how many of them cannot be told to be what was written.
        left_out: how many could not be read.
    """

    lossy: int = 0
    left_out: int = 0


def read_set(path: Path) -> ReadClips:
    """Read a set: an .npz with `videos` (N, T, H, W, 3) uint8, an .npy of that shape, or a folder of videos.

    Of a clip that lies there in several formats the lossless one is read. Clips of unequal length are cut to the
    shortest, and stderr says so; unreadable ones are named there, left out and counted.

    Raises:
        ValueError: if nothing can be read, or sizes differ.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_file() and path.suffix.lower() in ARRAYS:
        return ReadClips(read_arrays(path))
    files = one_each([path] if path.is_file() else find_videos(path))
    clips: list[np.ndarray] = []
    names: list[str] = []
    errors: list[str] = []
    lossy = 0
    for file in files:
        try:
            clip = read_clip(file, 0, len(read_index(file)))
            lossy += not is_lossless(file)
        except Unreadable as error:
            errors.append(str(error))
            continue
        if clips and clip.shape[1:] != clips[0].shape[1:]:
            raise ValueError(
                f"clips to be measured must be of one size, got {names[0]} of {clips[0].shape[1:3]} and {file.name} of "
                f"{clip.shape[1:3]}"
            )
        clips.append(clip)
        names.append(file.stem)
    for told in errors[:5]:
        print(told, file=sys.stderr)
    if not clips:
        raise ValueError(f"{path} must hold readable videos, got {len(errors)} others")
    least, most = min(map(len, clips)), max(map(len, clips))
    if least < most:
        print(f"{path}: clips have {least} to {most} frames, the first {least} are taken", file=sys.stderr)
    return ReadClips(np.stack([clip[:least] for clip in clips]), None, names, lossy, len(errors))


def one_each(files: list[Path]) -> list[Path]:
    """Of files that differ in their ending alone one, the lossless one."""
    best: dict[Path, Path] = {}
    for file in sorted(files, key=lambda f: (f.suffix == ".mkv", f)):
        if file.name != OURS:
            best[file.with_suffix("") if file.is_file() else file] = file
    return sorted(best.values())
