"""A limit on the time spent on untrusted files, each of which may take seconds."""

import time
from collections.abc import Iterable
from pathlib import Path

from ditmoe.outside.paths import is_regular

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


def left_out(number: int) -> str:
    """What is said of files for which there was no time."""
    return f"{number} more are left out: those before them took too long for their size"
