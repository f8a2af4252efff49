"""An index of folder contents, saved so that the next start only checks whether a folder has changed."""

import os
import time
from pathlib import Path

import numpy as np

from ditmoe.outside import Entries, Parts, read_entries
from modalities.shared.cache import file_of, load, store, writable

LEAST = 10_000
"""Files from which an index is saved; below, listing them is fast enough."""
SETTLED = 2 * 10**9
"""Nanoseconds after a change until any further change is sure to alter a folder's timestamps on any file system."""
FORMS = {"text": ("|u1", ("B",)), "ends": ("<i8", ("F", 3)), "stamps": ("<i8", ("F", 3))}
_NEVER = (0, 0, 0)


class FolderIndex:
    """Reads folders for `ditmoe.outside.folders_below`, from an index if they have not changed since.

    Adding, removing or renaming an entry changes a folder's inode number or its two timestamps (mtime and ctime).
    These do not show that a file's content has changed: results derived from file contents need their own check.
    Folders with links are always read, since a link's target can change elsewhere, and so are folders that changed
    within `SETTLED` before being read.

    Args:
        folder: where the index is saved; None disables it.
        root: the top of the folders.
    """

    def __init__(self, folder: Path | None, root: Path) -> None:
        self.folder = folder
        self.file = None if folder is None else file_of(folder, "listing-1", os.path.realpath(root))
        self._known = _Known.load(self.file)
        self._seen: list[tuple[str, str, str, tuple[int, int, int]]] = []
        self._num_files = self._num_read = 0

    def read(self, parts: Parts, path: str, about: os.stat_result) -> Entries:
        """The entries of a folder; see `ditmoe.outside.Read`."""
        place, stamp = "/".join(parts), _stamp(about)
        found = self._known.get(place, stamp)
        if found is None:
            found, self._num_read = read_entries(path), self._num_read + 1
            if not found.fixed or found.special or time.time_ns() - max(stamp[1:]) < SETTLED:
                stamp = _NEVER
        self._num_files += len(found.files)
        if self.file is not None:
            kept = ("", "") if stamp == _NEVER else ("/".join(found.files), "/".join(found.folders))
            self._seen.append((place, *kept, stamp))
        return found

    def save(self) -> None:
        """Save the index once all folders are read, if it differs from the saved one."""
        if self.file is None or self._num_files < LEAST:
            return
        if (self._num_read or len(self._seen) != len(self._known)) and writable(self.folder):
            texts = [text.encode("utf-8", "surrogateescape") for seen in self._seen for text in seen[:3]]
            store(
                self.file,
                text=np.frombuffer(b"".join(texts), np.uint8),
                ends=np.cumsum([len(text) for text in texts], dtype=np.int64).reshape(-1, 3),
                stamps=np.array([stamp for *_, stamp in self._seen], np.int64).reshape(-1, 3),
            )


class _Known:
    """An index from a file, which is not trusted: names in it cannot lead out of their folder."""

    def __init__(self, text: bytes, ends: np.ndarray, stamps: np.ndarray) -> None:
        ends = ends.ravel()
        if len(ends) and (np.diff(ends, prepend=0).min() < 0 or ends[-1] != len(text)):
            raise ValueError("its ends are out of order")
        self.text, self.ends, self.stamps = text, ends, stamps
        self.numbers = {self._piece(3 * i): i for i in range(len(stamps))}

    @staticmethod
    def load(file: Path | None) -> "_Known":
        arrays = None if file is None else load(file, FORMS)
        try:
            if arrays is not None:
                return _Known(arrays["text"].tobytes(), arrays["ends"], arrays["stamps"])
        except ValueError:  # it is rewritten
            pass
        return _Known(b"", np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64))

    def __len__(self) -> int:
        return len(self.stamps)

    def get(self, place: str, stamp: tuple[int, int, int]) -> Entries | None:
        """The entries of a folder, if they are known and it has not changed."""
        number = self.numbers.get(place)
        if number is None or tuple(self.stamps[number].tolist()) != stamp or stamp == _NEVER:
            return None
        files, folders = (names.split("/") if (names := self._piece(3 * number + i)) else [] for i in (1, 2))
        if "\0" in self._piece(3 * number + 2) or not {"", ".", ".."}.isdisjoint([*files, *folders]):
            return None
        return Entries(files, folders, [])

    def _piece(self, i: int) -> str:
        first = int(self.ends[i - 1]) if i else 0
        return self.text[first : int(self.ends[i])].decode("utf-8", "surrogateescape")


def _stamp(about: os.stat_result) -> tuple[int, int, int]:
    """State of a folder that changes with its entries; renames and a reset mtime still change the ctime."""
    return about.st_ino % 2**63, about.st_mtime_ns, about.st_ctime_ns
