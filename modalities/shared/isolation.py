"""Runs jobs in processes of their own, so that one that crashes or hangs costs only itself."""

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

J = TypeVar("J")


def run_isolated(
    work: Callable[[J], Any],
    jobs: Sequence[J],
    workers: int,
    timeout: Callable[[J], float],
    memory: int | None = None,
) -> Iterator[tuple[J, Any]]:
    """Run `work(job)` for each job; gives each job, as it ends, with its result or its error.

    A process that dies (ChildProcessError), or works on a job for too long (TimeoutError), is replaced, where
    `concurrent.futures` would give up all jobs or wait for ever. Bugs come as RuntimeError.

    Args:
        timeout: seconds that a job may take.
        memory: bytes that a process may take beside what it starts with, so that what a damaged header asks for is not
            taken from the rest of the machine.
    """
    waiting = list(reversed(jobs))
    idle: list[tuple[Connection, BaseProcess]] = []
    busy: dict[Connection, tuple[BaseProcess, J, float, float]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                pipe, process = idle.pop() if idle else _start(work, memory)
                job = waiting.pop()
                pipe.send(job)
                seconds = timeout(job)
                busy[pipe] = process, job, seconds, time.monotonic() + seconds
            soonest = min(deadline for *_, deadline in busy.values())
            ready = wait(list(busy), max(0.0, soonest - time.monotonic()))
            for pipe, (process, job, seconds, deadline) in list(busy.items()):
                if pipe in ready:
                    found = _answer(pipe, process)
                elif time.monotonic() >= deadline:
                    process.kill()
                    found = TimeoutError(f"took more than {seconds:g} seconds")
                else:
                    continue
                del busy[pipe]
                if process.is_alive() and pipe in ready:
                    idle.append((pipe, process))
                yield job, found
    finally:
        for process in [process for _, process in idle] + [process for process, *_ in busy.values()]:
            process.kill()


def isolated(work: Callable[[], J], seconds: float, memory: int) -> J:
    """Run one job in a copy of this process, which may be such a copy itself, has no screen, and ends with it.

    Errors are those of `run_isolated`. Where processes cannot be copied, the job runs in this one.
    """
    if sys.platform != "linux":
        return work()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    parent = os.getpid()
    if not (child := os.fork()):
        try:
            _end_with(parent)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where Rust and C++ tell how they end
            _limit(memory)
            theirs.send(_outcome(work))
        finally:
            os._exit(1)
    theirs.close()
    try:
        found = ours.recv() if ours.poll(seconds) else TimeoutError(f"took more than {seconds:g} seconds")
    except (EOFError, OSError):
        found = ChildProcessError("ended its process")
    finally:
        ours.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if isinstance(found, Exception):
        raise found
    return found


def num_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(work: Callable[[J], Any], memory: int | None) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, theirs = context.Pipe()
    process = context.Process(  # type: ignore[attr-defined]
        target=_serve, args=(work, memory, ours, theirs, os.getpid()), daemon=True
    )
    process.start()
    # With their end open here as well, a dead process would never read as the end of the pipe.
    theirs.close()
    return ours, process


def _answer(pipe: Connection, process: BaseProcess) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        process.join()
        return ChildProcessError(f"ended its process with exit code {process.exitcode}")


def _serve(
    work: Callable[[J], Any], memory: int | None, ours: Connection, theirs: Connection, parent: int
) -> None:
    _end_with(parent)
    ours.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children itself
    if memory is not None:
        _limit(memory)
    while True:
        try:
            job = theirs.recv()
        except EOFError:
            return
        theirs.send(_outcome(partial(work, job)))


def _end_with(parent: int) -> None:
    """Let this process be killed when its parent is, whatever it works on: it has the parent's locks, too."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which the parent may take for a request
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # which was so before
            os._exit(1)


def _outcome(work: Callable[[], Any]) -> Any:
    """What it gives, or its error; also of those that Python does not count among its own, as PyO3's panics."""
    try:
        return work()
    except (ValueError, OSError) as error:
        return error
    except BaseException as error:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _limit(memory: int) -> None:
    """Give this process so many bytes beside what it has, where there are such limits."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
