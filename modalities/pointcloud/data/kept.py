"""Cache of facts that need all cloud files to be opened: numbers of points, and moments."""

import os
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from modalities.shared.cache import file_of, load, store, writable
from modalities.shared.folder_index import SETTLED

LEAST = 1000
"""Files from which facts are cached; below, computing them takes a second or two."""
COUNTS = {"files": ("|u1", ("F", 16)), "counts": ("<i8", ("F",))}
MOMENTS = {"mean": ("<f8", (3,)), "scale": ("<f8", (1,))}

Moments = tuple[Float64[np.ndarray, "3"], float]


class Kept:
    """Facts about files, cached in a folder and valid as long as each file's size and times are unchanged.

    Checking these costs a hundredth of opening the files.

    Args:
        folder: cache folder; None disables caching.
        root: root of the files.
    """

    def __init__(self, folder: Path | None, root: Path | None) -> None:
        self.folder, self.root = None if root is None else folder, root or Path()
        self._seen: dict[str, bytes] = {}

    def counts(self, files: Sequence[Path], count: Callable[[Path], int]) -> list[int]:
        """The result of `count` for each file, computed only for new or changed files."""
        if self.folder is None or len(files) < LEAST:
            return [count(file) for file in files]
        file = file_of(self.folder, "points-1", os.path.realpath(self.root))
        known: dict[bytes, int] = {}
        if (found := load(file, COUNTS)) is not None:
            known = dict(zip(map(bytes, found["files"]), found["counts"].tolist(), strict=True))
        marks = self._marks(files)
        counts = [known.get(mark) if mark else None for mark in marks]
        missing = [i for i, number in enumerate(counts) if number is None]
        for i in missing:
            counts[i] = count(files[i])
        kept = {m: n for m, n in zip(marks, counts, strict=True) if m}
        if kept.keys() != known.keys() and writable(self.folder):
            names = np.frombuffer(b"".join(kept), np.uint8).reshape(-1, 16)
            store(file, files=names, counts=np.array(list(kept.values()), np.int64))
        return [-1 if number is None else number for number in counts]

    def moments(self, files: Sequence[Path], how: str, compute: Callable[[], Moments]) -> Moments:
        """The result of `compute` for all files.

        Args:
            how: key of everything it depends on besides the files.
        """
        marks = self._marks(files) if self.folder is not None and len(files) >= LEAST else [b""]
        if self.folder is None or not all(marks):
            return compute()
        file = file_of(self.folder, "normalisation-1", how, sha256(b"".join(marks)).hexdigest())
        if (found := load(file, MOMENTS)) is not None and found["scale"][0] > 0:
            return found["mean"], float(found["scale"][0])
        mean, scale = compute()
        if writable(self.folder):
            store(file, mean=np.asarray(mean, np.float64), scale=np.array([scale]))
        return mean, scale

    def _marks(self, files: Sequence[Path]) -> list[bytes]:
        """Fingerprints that identify each file and its state; empty if a file changed too recently."""
        now, top = time.time_ns(), len(os.fspath(self.root))
        paths = list(map(os.fspath, files))
        for path in paths:
            if path not in self._seen:
                self._seen[path] = _mark(path, top, now)
        return [self._seen[path] for path in paths]


def _mark(path: str, top: int, now: int) -> bytes:
    try:
        about = os.stat(path)
    except OSError:
        return b""
    if now - max(about.st_mtime_ns, about.st_ctime_ns) < SETTLED:
        return b""
    text = f"{path[top:]}\0{about.st_size}\0{about.st_mtime_ns}\0{about.st_ctime_ns}"
    return sha256(text.encode("utf-8", "surrogateescape")).digest()[:16]
