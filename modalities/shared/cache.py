"""Results cached on disk, in files named after a hash of their inputs."""

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
"""NumPy dtype and shape of each array; a letter in a shape stands for the same size everywhere."""


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """On Ctrl-C, tell the user that finished results are kept."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is not None:
            print(f"\nthe same command goes on from what is kept in {printable(folder)}", file=sys.stderr)
        raise


def writable(folder: Path | None) -> Path | None:
    """Create the folder and remove temporary files of killed processes; None, with a line, if it is not writable."""
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
    """Arrays from the cached file, else computed and cached; None as the file disables caching."""
    found = None if file is None else load(file, forms)
    if found is None:
        found = compute()
        if file is not None:
            store(file, **found)
    return found


def content_hash(clouds: Iterable[np.ndarray]) -> str:
    """SHA-256 of a list of clouds: of their shapes and float64 coordinates, in order."""
    digest = sha256()
    for cloud in clouds:
        array = np.ascontiguousarray(cloud, dtype="<f8")
        digest.update(repr(array.shape).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def file_of(folder: Path, variant: str, *hashes: str) -> Path:
    """The cache file for results of this variant about sets with these hashes.

    The variant says what was computed and how ("emd-exact_l2"): anything that could change a number belongs in it.
    """
    name = sha256("\n".join([variant, *hashes]).encode()).hexdigest()
    return folder / f"{variant}-{name[:32]}.npz"


def load(file: Path, forms: Forms) -> dict[str, np.ndarray] | None:
    """Load the arrays that `store` wrote under these names, or None if there is no file.

    Also None, with one line, if the file is damaged, or if its arrays have other forms (checked before they are read)
    or are not finite: the cache may come from an untrusted source.
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
    """Write arrays atomically; if that fails, say so once and go on."""
    try:
        with replacing(file) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        _tell_once(f"results cannot be kept in {file.parent}: {error.strerror}")
    except ValueError as error:  # a folder, a pipe or a device has the file's name
        _tell_once(f"results cannot be kept in {file.parent}: {error}")


@functools.cache
def _tell_once(line: str) -> None:
    tell(line)
