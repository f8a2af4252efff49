"""Threads in which distances are computed, since kernels and SciPy release the GIL; they end early after Ctrl-C."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

from modalities.shared.isolation import num_cores


def num_threads(workers: int | None) -> int:
    """Number of threads; None takes as many as this process has cores.

    Raises:
        ValueError: if it is less than one.
    """
    workers = num_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    return workers


@contextmanager
def threads(workers: int, interrupted: Event) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, whose jobs end at the next pair once `interrupted` is set, as it is by an error within.

    Leaving the pool waits for its threads: after Ctrl-C only for one pair each, not for all that was submitted.
    """
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool
        except BaseException:
            interrupted.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
