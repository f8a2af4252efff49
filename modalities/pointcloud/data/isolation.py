"""Runs jobs in processes of their own, so that one that crashes or hangs costs only itself."""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

J = TypeVar("J")


def run_isolated(
    work: Callable[[J], None], jobs: Sequence[J], workers: int, timeout: float
) -> Iterator[tuple[J, Exception | None]]:
    """Run `work(job)` for each job; gives each job, as it ends, with its error or None.

    A process that dies, or works on one job for more than `timeout` seconds, is replaced, where
    `concurrent.futures` would give up all jobs or wait for ever.
    """
    waiting = list(reversed(jobs))
    idle: list[tuple[Connection, BaseProcess]] = []
    busy: dict[Connection, tuple[BaseProcess, J, float]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                pipe, process = idle.pop() if idle else _start(work)
                pipe.send(waiting[-1])
                busy[pipe] = process, waiting.pop(), time.monotonic() + timeout
            soonest = min(deadline for *_, deadline in busy.values())
            ready = wait(list(busy), max(0.0, soonest - time.monotonic()))
            for pipe, (process, job, deadline) in list(busy.items()):
                if pipe in ready:
                    error = _answer(pipe, process)
                elif time.monotonic() >= deadline:
                    process.kill()
                    error = ValueError(f"took more than {timeout:g} seconds")
                else:
                    continue
                del busy[pipe]
                if process.is_alive() and pipe in ready:
                    idle.append((pipe, process))
                yield job, error
    finally:
        for process in [process for _, process in idle] + [process for process, *_ in busy.values()]:
            process.kill()


def _start(work: Callable[[J], None]) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, ours, theirs), daemon=True)  # type: ignore[attr-defined]
    process.start()
    # With their end open here as well, a dead process would never read as the end of the pipe.
    theirs.close()
    return ours, process


def _answer(pipe: Connection, process: BaseProcess) -> Exception | None:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        process.join()
        return ValueError(f"ended its process with exit code {process.exitcode}")


def _serve(work: Callable[[J], None], ours: Connection, theirs: Connection) -> None:
    ours.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children itself
    while True:
        try:
            job = theirs.recv()
        except EOFError:
            return
        try:
            work(job)
            theirs.send(None)
        except (ValueError, OSError) as error:
            theirs.send(error)
        except Exception as error:
            theirs.send(ValueError(f"{type(error).__name__}: {error}"))
