"""Work on files in a process of its own: one that hangs or kills its decoder takes nothing else down."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Timer
from typing import Any

from ditmoe.outside import tell

SECONDS, SECONDS_PER_MB = 60.0, 10.0
"""What a file may take: ten times as long as a slow core needs for a long film of low rate."""
READY = b"ready\n"
_MEMORY = 8 * 2**30  # bytes: what a damaged header asks for must not be taken from the rest of the machine


class Child:
    """A process that answers for one path after another; started when first needed, and anew after its death.

    Args:
        code: of the process, which calls `serve`.
        seconds: for one file, and per megabyte.
    """

    def __init__(self, code: str, seconds: float = SECONDS, seconds_per_mb: float = SECONDS_PER_MB) -> None:
        self.code, self.seconds, self.seconds_per_mb = code, seconds, seconds_per_mb
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, path: Path, size: int) -> Any:
        """What the process says of a path; "timeout" or "crash" where it dies over it.

        Args:
            size: of the file in bytes.
        """
        process = self._process = self._process or self._started()
        late = Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = Timer(self.seconds + self.seconds_per_mb * size / 1e6, end)
        timer.start()
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(str(path)).encode() + b"\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
            line = process.stdout.readline()  # type: ignore[union-attr]
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            return json.loads(line)
        self.close()
        return "timeout" if late.is_set() else "crash"

    def kill(self) -> None:
        """End the process whatever it does, from any thread; who waits for an answer gets "crash"."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the process and clean up; not while another thread waits for an answer."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _started(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-c", self.code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)},
            start_new_session=True,  # an interrupt at the terminal is for the one that asks
        )
        if process.stdout.readline() != READY:  # type: ignore[union-attr]
            process.communicate()
            raise RuntimeError("a process that decodes videos did not start: see its message above")
        return process


def serve(work: Callable[[Path], Any]) -> None:
    """The process: read paths from stdin, write what `work` makes of them to stdout, until stdin ends."""
    with suppress(ImportError, OSError, ValueError):  # where there are no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    out.write(READY)
    out.flush()
    for line in sys.stdin.buffer:
        path = Path(json.loads(line))
        try:
            answer = work(path)
        except Exception as error:
            tell(f"{path}: {type(error).__name__}: {error}")
            answer = "crash"
        out.write(json.dumps(answer).encode() + b"\n")
        out.flush()
