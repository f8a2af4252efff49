"""Results that outlive the process, in files that are named after what they were computed from."""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from ditmoe.checkpoint import replacing
from ditmoe.checkpoint.atomic import clear
from ditmoe.outside import Arrays, printable, tell

Forms = Mapping[str, tuple[str, tuple[int | str, ...]]]
"""Of each array its NumPy type and its shape: a size, or a letter, which stands for the same size everywhere."""


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
    file: Path | None, compute: Callable[[], dict[str, np.ndarray]], forms: Forms
) -> dict[str, np.ndarray]:
    """Arrays from a file that was kept, or else computed and kept in it; None keeps nothing."""
    found = None if file is None else load(file, forms)
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


def load(file: Path, forms: Forms) -> dict[str, np.ndarray] | None:
    """The arrays of these names that `store` wrote, or None where there is no file.

    Also None, and one line, where the file is damaged or its arrays are not of these forms, which is known before they
    are read, or not finite: a folder of results may come from a stranger.
    """
    try:
        with Arrays(file) as stored:
            _check_forms({name: stored.about(name) for name in forms if name in stored}, forms)
            found = {name: stored[name] for name in forms}
        for name, array in found.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
        return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        tell(f"{file} is damaged and computed anew ({type(error).__name__}: {error})")
        return None


def _check_forms(stored: Mapping[str, tuple[tuple[int, ...], np.dtype]], forms: Forms) -> None:
    sizes: dict[str, int] = {}
    for name, (kind, wanted) in forms.items():
        if name not in stored:
            raise ValueError(f"it lacks {name}")
        shape, dtype = stored[name]
        known = len(shape) == len(wanted) and all(
            n == (sizes.setdefault(size, n) if isinstance(size, str) else size)
            for n, size in zip(shape, wanted, strict=True)
        )
        if not known or dtype != np.dtype(kind):
            words = ", ".join(
                str(sizes.get(size, size) if isinstance(size, str) else size) for size in wanted
            )
            raise ValueError(f"{name} must be {np.dtype(kind)} of ({words}), got {dtype} of {shape}")


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
