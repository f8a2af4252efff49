"""Runs jobs in separate processes, so that a crash or hang affects only that job."""

import atexit
import ctypes
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from ditmoe.outside.signals import TERMINAL, ignore

J = TypeVar("J")
START = 300.0
"""Seconds for an interpreter to start and import what a job needs."""
SERVE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from modalities.shared.isolation import serve
serve()
"""
"""Code of an interpreter that serves jobs, with the import paths of this process only."""


def run_isolated(
    work: Callable[[J], Any],
    jobs: Sequence[J],
    workers: int,
    timeout: Callable[[J], float],
    memory: int | None = None,
) -> Iterator[tuple[J, Any]]:
    """Run `work(job)` for each job; yields each job on completion, with its result or its error.

    A process that dies (ChildProcessError) or exceeds the timeout (TimeoutError) is replaced, where
    `concurrent.futures` would give up all jobs or wait for ever. Unexpected exceptions become RuntimeError.

    Args:
        timeout: seconds allowed for a job.
        memory: bytes that a process may allocate beyond what it starts with, so that a damaged header cannot exhaust
            the machine's memory.
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
    """Run one job in another process, without terminal output.

    The process is a fresh interpreter that imports what the job needs, since a fork of a process with threads may
    deadlock on their locks. It serves later jobs until a job kills it or this process ends.

    Args:
        work: picklable, such as a `partial` of a function, from a module that is quick to import.
        seconds, memory: limits, counted from when all is imported; memory in bytes, on Linux only.

    Raises:
        TimeoutError, ChildProcessError: if it takes too long, or its process dies; else as in `run_isolated`.
        RuntimeError: if no process can be started.
    """
    idle = _servers(os.getpid())
    server = _idle_one(idle) or _Server()
    found = server.done(work, seconds, memory)
    if server.process.poll() is None:
        idle.append(server)
    if isinstance(found, Exception):
        raise found
    return found


def _idle_one(idle: list["_Server"]) -> "_Server | None":
    with suppress(IndexError):  # other threads take from the same list
        while (server := idle.pop()).process.poll() is not None:
            pass
        return server
    return None


@cache
def _servers(pid: int) -> list["_Server"]:
    """Idle servers of this process; a fork begins with none."""
    servers: list[_Server] = []

    def end() -> None:
        for server in servers if os.getpid() == pid else ():
            server.end()

    atexit.register(end)
    return servers


class _Server:
    """An interpreter that runs one job after another (`serve`)."""

    def __init__(self) -> None:
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS")}
        self.process = subprocess.Popen(
            # -P: the files of the current folder, a json.py say, must not hide installed modules of the same name.
            [sys.executable, "-P", "-c", SERVE, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Rust and C++ print their crashes there
            env={**os.environ, **threads},
        )

    def done(self, work: Callable[[], Any], seconds: float, memory: int) -> Any:
        """Run a job; returns its result or its error. Errors other than Python's end the process."""
        job = pickle.dumps((pickle.dumps(work), seconds, memory))
        try:
            self._answer(job, START)
        except (EOFError, OSError) as error:
            self.end()
            raise RuntimeError("a process in which files are tried must start, and did not") from error
        try:
            return self._answer(b"", seconds)
        except TimeoutError as error:
            return error
        except (EOFError, OSError, pickle.UnpicklingError):
            self.end()
            return ChildProcessError("ended its process")

    def _answer(self, sent: bytes, seconds: float) -> Any:
        to, back = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
        late = threading.Event()

        def end() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            to.write(sent)
            to.flush()
            return pickle.load(back)
        except (EOFError, OSError, pickle.UnpicklingError):
            if not late.is_set():
                raise
            self.end()
            raise TimeoutError(f"took more than {seconds:g} seconds") from None
        finally:
            timer.cancel()

    def end(self) -> None:
        """Kill the process and wait for it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                cast(IO[bytes], stream).close()


def serve() -> None:
    """Run jobs from standard input until there are no more; all other output is discarded."""
    ignore(*TERMINAL)  # the parent ends it
    with os.fdopen(os.dup(1), "wb") as back, open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        while True:
            try:
                job, seconds, memory = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            work = pickle.loads(job)  # imports what the job needs
            pickle.dump(None, back)
            back.flush()
            with _bounded(seconds, memory):
                answer = pickle.dumps(_outcome(work))
            back.write(answer)
            back.flush()


@contextmanager
def _bounded(seconds: float, memory: int) -> Iterator[None]:
    """Limit the memory of a job, and its time in case the parent is gone."""
    alarm = getattr(signal, "setitimer", None)
    if alarm:
        alarm(signal.ITIMER_REAL, seconds + 1)  # which ends the process
    _limit(memory)
    try:
        yield
    finally:
        if alarm:
            alarm(signal.ITIMER_REAL, 0)


def num_cores() -> int:
    """Cores available to this process, possibly fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(work: Callable[[J], Any], memory: int | None) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, theirs = context.Pipe()
    process = context.Process(  # type: ignore[attr-defined]
        target=_serve, args=(work, memory, ours, theirs, os.getpid()), daemon=True
    )
    process.start()
    # With the child's end left open here, the pipe would never report EOF when the child dies.
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
    ignore(*TERMINAL)  # the parent ends its children itself
    if memory is not None:
        _limit(memory)
    while True:
        try:
            job = theirs.recv()
        except EOFError:
            return
        theirs.send(_outcome(partial(work, job)))


def _end_with(parent: int) -> None:
    """Have this process killed with its parent, whatever it is doing: it also holds the parent's file locks."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent may handle it as a request to stop
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # the parent had already died
            os._exit(1)


def _outcome(work: Callable[[], Any]) -> Any:
    """The result or the error, including errors that are not Exceptions, such as PyO3's panics."""
    try:
        return work()
    except (ValueError, OSError) as error:
        return error
    except BaseException as error:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _limit(memory: int) -> None:
    """Limit this process to so many bytes beyond what it has, where the system supports it."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + memory
        _, allowed = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(
            resource.RLIMIT_AS, (most if allowed == resource.RLIM_INFINITY else min(most, allowed), allowed)
        )
