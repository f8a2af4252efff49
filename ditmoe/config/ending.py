"""How a command ends on SIGTERM, or with its terminal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ditmoe.distributed import launch
from ditmoe.outside.signals import ENDING, HANGUP, handling, ignore


@contextmanager
def by_signals() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP like Ctrl-C, so that temporary folders are removed and child processes end.

    A process of torchrun keeps the default and ends at once: while it waits for others, it could not react.
    """
    alone = launch.world() == 1
    with handling(_interrupt, *(n for n in ENDING if alone and signal.getsignal(n) is signal.SIG_DFL)):
        yield


def _interrupt(number: int, frame: Any) -> None:
    if number == HANGUP:
        ignore(number)  # a second one must not interrupt the removal
    raise KeyboardInterrupt
