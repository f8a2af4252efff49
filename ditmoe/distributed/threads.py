"""As many threads as the machine has cores to spare.

Threads of a step wait for each other many times in it, and for the one that another process keeps from its core: beside
one busy process two threads on two cores train at a twentieth of the speed of one. So the processors' load by others is
looked at once a second, and that many cores are left to them.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATISTICS = Path("/proc/stat")
SECONDS = 1.0
"""Between two looks."""
_IDLE = (3, 4)
"""Columns of the first line of /proc/stat in which nobody works: idle, and waiting for a disk."""


def threads_for(cores: int, others: float) -> int:
    """Threads for one process where others keep so many cores busy; a quarter of a core is not worth leaving one."""
    return min(cores, max(1, math.floor(cores - others + 0.25)))


def busy_seconds() -> float:
    """Processor time that all processes of the machine have taken.

    Raises:
        OSError, ValueError: where the system does not tell.
    """
    with STATISTICS.open() as stream:
        columns = [int(number) for number in stream.readline().split()[1:9]]
    return (sum(columns) - sum(columns[i] for i in _IDLE)) / os.sysconf("SC_CLK_TCK")


class SpareThreads:
    """Changes the number of torch's threads with the load by others; call it after each step.

    Sums over threads are rounded by how many there are, so that runs are the same bit for bit only on equal numbers.
    It does nothing where OMP_NUM_THREADS says how many (torchrun does) or somebody else sets them, where there is one
    core, and where the system does not tell its load.

    Args:
        busy: processor time of all processes; own: of this one; now: the time; all in seconds.
        threads: how many there are, and how many there shall be.
    """

    def __init__(
        self,
        busy: Callable[[], float] = busy_seconds,
        own: Callable[[], float] = time.process_time,
        now: Callable[[], float] = time.monotonic,
        threads: tuple[Callable[[], int], Callable[[int], None]] = (
            torch.get_num_threads,
            torch.set_num_threads,
        ),
    ) -> None:
        self.busy, self.own, self.now = busy, own, now
        self.threads, self.set_threads = threads
        self.cores = self.current = self.threads()
        self.on = self.cores > 1 and "OMP_NUM_THREADS" not in os.environ
        self.last: tuple[float, float] | None = None
        self.wanted = self.cores

    def __call__(self) -> None:
        """Look, where it is time to: fewer threads at once, more where two looks in a row find the cores free."""
        if not self.on or (self.last and self.now() - self.last[0] < SECONDS):
            return
        if self.threads() != self.current:
            self.on = False
            return
        try:
            now, others = self.now(), self.busy() - self.own()
        except (OSError, ValueError, IndexError):
            self.on = False
            return
        if self.last:
            wanted = threads_for(self.cores, (others - self.last[1]) / (now - self.last[0]))
            # Two looks: the work of others, and what is counted of it, comes in gusts.
            threads = min(wanted, max(self.wanted, self.current))
            if threads != self.current:
                self.set_threads(threads)
            self.wanted, self.current = wanted, threads
        self.last = now, others

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it the number of threads stays as it is."""
        on, self.on = self.on, False
        try:
            yield
        finally:
            self.on = on


share_cores = SpareThreads()
"""Of this process, for whatever computes in steps."""
