"""How a command ends on SIGTERM."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ditmoe.distributed import launch


@contextmanager
def by_sigterm() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that temporary folders are removed and child processes end.

    A process of torchrun keeps the default and ends at once: while it waits for others, it could not react.
    """
    alone = threading.current_thread() is threading.main_thread() and launch.world() == 1
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
