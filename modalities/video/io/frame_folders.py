"""Videos that are not video files: folders of images, and arrays."""

import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ditmoe.outside import Arrays, about_array, check_items, is_regular, load_array, printable
from ditmoe.outside.paths import GROWTH
from modalities.shared.decode import STILLS, decoded, upright
from modalities.shared.decoder_limits import TooLargeError
from modalities.video.io.container import MOST_PIXELS, Unreadable, check_size
from modalities.video.io.index import Index

PICTURES = STILLS
ARRAYS = (".npy", ".npz")
LARGEST_CLIP = 2**29
"""Most bytes of the frames read at once from a small file; for a large one, 100 times its size."""


def may_take(stored: int) -> int:
    """Memory limit, in bytes, of the frames of a clip from a file of so many bytes."""
    return max(LARGEST_CLIP, GROWTH * stored)


def size_of(files: Sequence[Path]) -> int:
    """Total bytes of the regular files among some files."""
    return sum(file.stat().st_size for file in files if is_regular(file))


def list_pictures(folder: Path) -> list[Path]:
    """The images of a folder in natural order (frame 2 before frame 10), without hidden ones."""
    try:
        files = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    except OSError as error:
        raise Unreadable(folder, "missing", error.strerror or "") from error
    return sorted(files, key=lambda p: ([_natural(part) for part in re.split(r"(\d+)", p.stem)], p.name))


def read_pictures(
    folder: Path, files: Sequence[Path], max_pixels: int = MOST_PIXELS
) -> UInt8[np.ndarray, "T H W 3"]:
    """Read images of one size; raises Unreadable, which names the folder, if one is damaged or differs in size."""
    frames: list[np.ndarray] = []
    left = may_take(size_of(files))
    for file in files:
        frames.append(_picture(folder, file, max_pixels))
        if (left := left - frames[-1].nbytes) < 0:
            raise Unreadable(folder, "too large", f"{len(files)} pictures")
    if not frames:
        raise Unreadable(folder, "empty")
    if len({frame.shape for frame in frames}) > 1:
        raise Unreadable(folder, "damaged", "pictures differ in size")
    return np.stack(frames)


def index_pictures(
    folder: Path, fault: Unreadable | None = None, max_pixels: int = MOST_PIXELS
) -> tuple[Index, list[Path]]:
    """Index and list the images of a folder: all, or with a `fault` the readable ones of the same size."""
    files = list_pictures(folder)
    if not files:
        raise Unreadable(folder, "empty")
    if fault and not (files := _alike(folder, files, max_pixels)):
        raise fault
    height, width, _ = _picture(folder, files[0], max_pixels).shape
    reason = fault.reason if fault else ""
    return Index(
        np.arange(len(files)), np.empty(0, np.int64), None, height, width, "", reason, max_pixels=max_pixels
    ), files


def read_array(path: Path, frames: Sequence[int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
    """Read one video, or some of its frames, from a .npy (T, H, W, 3) or from a file of a set with a single video.

    From a .npy only these frames are read.
    """
    shape = array_shape(path)
    if len(shape) == 4 and frames is not None and path.suffix.lower() == ".npy":
        with _blaming(path):
            return load_array(path, frames)
    video = read_arrays(path)[0]
    return video if frames is None else video[np.asarray(frames)]


def array_shape(path: Path) -> tuple[int, ...]:
    """Shape of one video (T, H, W, 3), or a set of one (1, T, H, W, 3), from its header.

    Raises:
        Unreadable: if it is neither.
    """
    shape = _promised(path)
    if len(shape) == 5 and shape[0] != 1:
        raise Unreadable(path, "not a video", f"a set of {shape[0]}")
    return shape


def read_arrays(path: Path) -> UInt8[np.ndarray, "N T H W 3"]:
    """A set of videos from a .npz with `videos` (N, T, H, W, 3) uint8, or a .npy of a set or of one video."""
    _promised(path)
    with _blaming(path):
        if path.suffix.lower() == ".npz":
            with Arrays(path) as archive:
                videos = archive["videos"]
        else:
            videos = load_array(path)
    return videos[None] if videos.ndim == 4 else videos


def _promised(path: Path) -> tuple[int, ...]:
    """The shape in a file's header, which must be that of one video or several."""
    if not is_regular(path):
        raise Unreadable(
            path, ("not a video" if path.is_dir() else "special") if path.exists() else "missing"
        )
    with _blaming(path):
        if path.suffix.lower() == ".npz":
            if not zipfile.is_zipfile(path):
                raise Unreadable(path, "truncated" if path.stat().st_size else "empty")
            with Arrays(path) as archive:
                if "videos" not in archive:
                    got = f"an npz of {printable(', '.join(archive))[:80]}, not of videos (N, T, H, W, 3)"
                    raise Unreadable(path, "not a video", got)
                shape, dtype = archive.about("videos")
        else:
            shape, dtype = about_array(path)
    if len(shape) == 5:
        with _blaming(path):
            check_items(shape[0], path)
    if dtype != np.uint8 or len(shape) not in (4, 5) or shape[-1] != 3 or not math.prod(shape):
        got = f"{dtype} of {(1, *shape) if len(shape) == 4 else shape}, not uint8 of (N, T, H, W, 3)"
        raise Unreadable(path, "not a video", got)
    return shape


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        reason = "not a video" if path.stat().st_size else "empty"
        raise Unreadable(path, reason, next(iter(str(error).splitlines()), "")[:100]) from error


def index_array(path: Path, max_pixels: int = MOST_PIXELS) -> Index:
    """Index a video stored as an array."""
    length, height, width, _ = array_shape(path)[-4:]
    check_size(path, width, height, max_pixels)
    return Index(np.arange(length), np.empty(0, np.int64), None, height, width)


def _natural(part: str) -> tuple[int, int, str]:
    return (0, int(part), part) if part.isdecimal() else (1, 0, part)


def _picture(folder: Path, file: Path, max_pixels: int) -> np.ndarray:
    """Read one image as (H, W, 3), with its EXIF orientation applied."""
    try:
        return decoded(file, _pixels, max_pixels)
    except Exception as error:  # Pillow's plugins throw many kinds
        large = "too large" if isinstance(error, TooLargeError) else "damaged"
        reason = large if file.exists() else "missing"
        detail = next(iter(str(error).splitlines()), "").replace(printable(file), printable(file.name))[:100]
        raise Unreadable(folder, reason, f"{file.name}: {detail}") from error


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(upright(picture))


def _alike(folder: Path, files: Sequence[Path], max_pixels: int) -> list[Path]:
    """The readable images that have the size of the first of them."""
    good: list[Path] = []
    size: tuple[int, ...] | None = None
    for file in files:
        try:
            shape = _picture(folder, file, max_pixels).shape
        except Unreadable:
            continue
        size = size or shape
        if shape == size:
            good.append(file)
    return good
