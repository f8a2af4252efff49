"""Graceful stopping: Ctrl-C, and the SIGTERM that clusters send half a minute before killing a job."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ditmoe.distributed import ALONE, Ranks, say


class Stop:
    """Records a request to stop; a second request raises KeyboardInterrupt."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.requested = self._breakable = False

    def agreed(self) -> bool:
        """Whether any rank got a request; collective: all ranks must call it, and get the same answer."""
        self.requested = self.ranks.any(self.requested)
        return self.requested

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the context, treat Ctrl-C and SIGTERM as a request."""
        previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """Within the context, a request aborts the work at once, unless there are other ranks."""
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
    """Not an Exception, so that no handler takes it for a failure."""
