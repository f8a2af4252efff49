"""A limit on the time spent on untrusted files, each of which may take seconds."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ditmoe.outside.paths import is_regular, tell

SECONDS, SECONDS_PER_MB = 10.0, 0.5
"""Seconds for any set of files, and additional ones per megabyte: a kilobyte can be a picture or a clip that takes
seconds, while a photograph of a megabyte takes a tenth of one."""


class Patience:
    """The time left, in CPU seconds of this process, so that other processes do not use it up.

    Args:
        seconds: for all files, in addition to that for their sizes.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._until = time.process_time() + seconds

    def grow(self, files: Iterable[Path]) -> None:
        """Add time for the sizes of these files; only regular files count."""
        size = sum(file.stat().st_size for file in files if is_regular(file))
        self._until += SECONDS_PER_MB * size / 1e6

    @property
    def is_over(self) -> bool:
        """Whether no further file should be started."""
        return time.process_time() > self._until


def patiently(files: Sequence[Path]) -> Iterator[Path]:
    """These files one by one, while there is time for them; a line on stderr counts those left out."""
    patience = Patience()
    patience.grow(files)
    for number, file in enumerate(files):
        if patience.is_over:
            tell(f"{len(files) - number} more are left out: those before them took too long for their size")
            return
        yield file
