"""How long all of a stranger's files are worked on together, where each of them may take seconds."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ditmoe.outside.paths import is_regular, tell

SECONDS, SECONDS_PER_MB = 10.0, 0.5
"""For any files, and beside them for what they hold: a kilobyte can be a picture, or a clip, that takes seconds, and
photographs of a megabyte take a tenth of one."""


class Patience:
    """Time that is left, of this process's own work: others that keep the machine busy take none of it.

    Args:
        seconds: of all files, whatever they hold.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._until = time.process_time() + seconds

    def grow(self, files: Iterable[Path]) -> None:
        """Have more of it for the bytes of these files, the plain ones among them."""
        size = sum(file.stat().st_size for file in files if is_regular(file))
        self._until += SECONDS_PER_MB * size / 1e6

    @property
    def is_over(self) -> bool:
        """Whether nothing further is begun."""
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
