"""Adapt the number of torch's threads to the load of other processes.

Threads synchronise many times in a step, so all wait for one whose core another process is using: beside one busy
process, two threads on two cores train at a twentieth of the speed of one thread. Therefore the load by other processes
is measured once a second, and that many cores are left to them.
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
"""Seconds between two measurements."""
_IDLE = (3, 4)
"""Columns of the first line of /proc/stat with idle time: idle and iowait."""


def threads_for(cores: int, others: float) -> int:
    """Number of threads when other processes use `others` cores; up to a quarter of a core is ignored."""
    return min(cores, max(1, math.floor(cores - others + 0.25)))


def busy_seconds() -> float:
    """Processor time of all processes of the machine since it started, in seconds.

    Raises:
        OSError, ValueError: if the system does not provide it.
    """
    with STATISTICS.open() as stream:
        columns = [int(number) for number in stream.readline().split()[1:9]]
    return (sum(columns) - sum(columns[i] for i in _IDLE)) / os.sysconf("SC_CLK_TCK")


class SpareThreads:
    """Sets the number of torch's threads by the load of other processes; call it after each step.

    Sums are rounded differently with other numbers of threads, so runs are equal bit for bit only with equal numbers.
    It does nothing if OMP_NUM_THREADS is set (torchrun sets it), if other code changes the number of threads, with a
    single core, and if the system does not provide its load.

    Args:
        busy: processor time of all processes, in seconds.
        own: processor time of this process, in seconds.
        now: the current time, in seconds.
        threads: functions that get and set the number of threads.
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
        """Measure, if it is time: use fewer threads at once, but more only after two measurements with free cores."""
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
            # Two measurements, since the load of others, and its accounting, comes in bursts.
            threads = min(wanted, max(self.wanted, self.current))
            if threads != self.current:
                self.set_threads(threads)
            self.wanted, self.current = wanted, threads
        self.last = now, others

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the number of threads constant within this context."""
        on, self.on = self.on, False
        try:
            yield
        finally:
            self.on = on


share_cores = SpareThreads()
"""The instance of this process, for all loops that compute in steps."""
