"""How a command ends that somebody else ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ditmoe.distributed import launch


@contextmanager
def by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that temporary folders go and processes that it started end.

    A process of torchrun, which may wait for others and then hears nothing, ends at once as ever.
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
