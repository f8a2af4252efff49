"""Graceful stopping: Ctrl-C, a terminal that is closed, and the SIGTERM that clusters send before killing a job."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ditmoe.distributed import ALONE, Ranks, say
from ditmoe.outside.signals import ENDING, HANGUP, handling


class Stop:
    """Records a request to stop; a second one raises KeyboardInterrupt, where SIGHUP does not count."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.requested = self._breakable = self._asked = False

    def agreed(self) -> bool:
        """Whether any rank got a request; collective: all ranks must call it, and get the same answer."""
        self.requested = self.ranks.any(self.requested)
        return self.requested

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the context, treat Ctrl-C, SIGTERM and SIGHUP as a request."""
        with handling(self._request, *ENDING):
            yield

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
        if number != HANGUP:  # which comes several times, and along with SIGTERM
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True
        if self.requested:
            return
        self.requested = True
        with suppress(RuntimeError):  # "reentrant call": the signal came while a line was being written
            say("")
            say("stopping after the current batch (once more to stop at once)")
        if self._breakable:
            raise _StoppedError


class _StoppedError(BaseException):
    """Not an Exception, so that no handler takes it for a failure."""
