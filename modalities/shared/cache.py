"""Results that outlive the process, in files that are named after what they were computed from."""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from ditmoe.checkpoint import replacing
from ditmoe.checkpoint.atomic import clear
from ditmoe.outside import Arrays, printable, tell


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Whoever stops this with Ctrl-C is told that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is not None:
            print(f"\nthe same command goes on from what is kept in {printable(folder)}", file=sys.stderr)
        raise


def writable(folder: Path | None) -> Path | None:
    """The folder, made, and rid of what killed processes left; None, and a line, where nothing can be kept in it."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _tell_once(f"results cannot be kept in {folder}: {error.strerror}")
        return None
    clear(folder)
    return folder


def computed(
    file: Path | None, compute: Callable[[], dict[str, np.ndarray]], *names: str
) -> dict[str, np.ndarray]:
    """Arrays from a file that was kept with at least these, or else computed and kept in it; None keeps nothing."""
    found = None if file is None else load(file, *names)
    if found is None:
        found = compute()
        if file is not None:
            store(file, **found)
    return found


def content_hash(clouds: Iterable[np.ndarray]) -> str:
    """SHA-256 of a list of clouds: of their shapes and float64 coordinates, in the order in which they come."""
    digest = sha256()
    for cloud in clouds:
        array = np.ascontiguousarray(cloud, dtype="<f8")
        digest.update(repr(array.shape).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def file_of(folder: Path, variant: str, *hashes: str) -> Path:
    """Where results of this variant about sets of these hashes are kept.

    The variant is what was computed and how ("emd-exact_l2"): what could change a number belongs into it.
    """
    name = sha256("\n".join([variant, *hashes]).encode()).hexdigest()
    return folder / f"{variant}-{name[:32]}.npz"


def load(file: Path, *names: str) -> dict[str, np.ndarray] | None:
    """The arrays that `store` wrote, or None where there are none; of a file that is damaged or lacks some of these
    names it says so in one line.
    """
    try:
        with Arrays(file) as stored:
            if missing := set(names).difference(stored):
                raise ValueError(f"it lacks {missing}")
            return dict(stored)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        tell(f"{file} is damaged and computed anew ({type(error).__name__})")
        return None


def store(file: Path, **arrays: np.ndarray) -> None:
    """Write arrays whole or not at all; where they cannot be written, say so once and let the work go on."""
    try:
        with replacing(file) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        _tell_once(f"results cannot be kept in {file.parent}: {error.strerror}")


@functools.cache
def _tell_once(line: str) -> None:
    tell(line)
