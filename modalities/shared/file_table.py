"""A compact table of millions of paths, each materialised on access."""

from collections.abc import Sequence

import numpy as np

from ditmoe.outside import Parts
from modalities.shared.on_demand import OnDemand


class FileTable(OnDemand[Parts]):
    """File paths grouped by folder, in order: concatenated names, and the folder once per run of files.

    Args:
        runs: folders, each with the names of files in it.
    """

    def __init__(self, runs: Sequence[tuple[Parts, Sequence[str]]]) -> None:
        self.folders = [folder for folder, _ in runs]
        counts = [len(names) for _, names in runs]
        self.firsts = np.cumsum([0, *counts])
        """Number of the first file of each run, and of all files."""
        texts = ["".join(names) for _, names in runs]
        lengths = [
            np.fromiter(map(len, names if text.isascii() else map(_bytes, names)), np.int64, len(names))
            for (_, names), text in zip(runs, texts, strict=True)
        ]
        self._text = b"".join(map(_bytes, texts))
        self._ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def make(self, number: int) -> Parts:
        run = int(np.searchsorted(self.firsts, number, side="right")) - 1
        name = self._text[int(self._ends[number]) : int(self._ends[number + 1])]
        return (*self.folders[run], name.decode("utf-8", "surrogateescape"))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
