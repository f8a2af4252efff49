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
        try:
            yield
        except Exception as error:
            if _is_of_an_interrupt(error):
                raise KeyboardInterrupt from error
            raise


def _is_of_an_interrupt(error: BaseException) -> bool:
    """Whether an error arose while KeyboardInterrupt went through a library, such as OmegaConf tidying up half a list.

    An OSError is never one: a disk that is full when a command stops is to be told.
    """
    before: BaseException | None = error
    while before and not isinstance(before, KeyboardInterrupt):
        before = before.__context__
    return before is not None and not isinstance(error, OSError)


def _interrupt(number: int, frame: Any) -> None:
    if number == HANGUP:
        ignore(number)  # a second one must not interrupt the removal
    raise KeyboardInterrupt
