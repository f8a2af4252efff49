"""Stopping in time: Ctrl-C, and the SIGTERM that clusters send half a minute before the kill."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ditmoe.distributed import ALONE, Ranks, say


class Stop:
    """Whether somebody asked for an end; a second time it is a KeyboardInterrupt."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.requested = self._breakable = False

    def agreed(self) -> bool:
        """Whether one of the ranks was asked; all of them must ask this, and then know."""
        self.requested = self.ranks.any(self.requested)
        return self.requested

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM as a request."""
        previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """Work that is given up at once when a stop is asked for, unless it is done together with other ranks."""
        self._breakable = self.ranks.size == 1
        try:
            yield
        except _StoppedError:
            pass
        finally:
            self._breakable = False

    def _request(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        say("")
        say("stopping after this pass (once more to stop at once)")
        if self._breakable:
            raise _StoppedError


class _StoppedError(BaseException):
    """No Exception, so that nobody takes it for a failure."""
