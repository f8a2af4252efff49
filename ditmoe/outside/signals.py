"""Signals that ask a process to end: Ctrl-C, SIGTERM of a cluster, SIGHUP of a terminal that is closed."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any

HANGUP: int | None = getattr(signal, "SIGHUP", None)
"""Sent by the kernel and by the shell, so often twice; None on Windows."""
TERMINAL = (signal.SIGINT, *([] if HANGUP is None else [HANGUP]))
"""Sent by a terminal to all its processes, so that children get them beside their parent."""
ENDING = (*TERMINAL, signal.SIGTERM)


@contextmanager
def handling(handler: Callable[[int, Any], None] | signal.Handlers, *numbers: int) -> Iterator[None]:
    """Within the context, handle these signals, except a SIGHUP that is ignored, as by nohup.

    In another thread than the main one, which cannot set handlers, nothing changes.
    """
    main = current_thread() is main_thread()
    chosen = [n for n in numbers if main and (n != HANGUP or signal.getsignal(n) is not signal.SIG_IGN)]
    previous = {number: signal.signal(number, handler) for number in chosen}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def ignore(*numbers: int) -> None:
    """Ignore signals in this process from now on."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
