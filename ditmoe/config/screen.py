"""What commands print: a screen that fails, or names that strangers chose, change nothing of the work."""

import os
import sys
from contextlib import suppress
from typing import Any

from ditmoe.outside import printable

LAYOUT = "\n\r\t"
_UP = "\x1b[A"  # what a bar below another one goes back by, in a write of its own


class Screen:
    """A text stream that raises no error of the device or the encoding, and shows controls instead of sending them.

    After the first error it is silent; a line on stderr says so, unless the reader has just gone (`| head`). All else
    is the stream's own: `isatty`, `fileno`, `encoding`, `buffer`, ...

    Args:
        stream: None where the process was started without one, as by `>&-`.
        name: by which stderr speaks of it; None is silent.
    """

    def __init__(self, stream: Any, name: str | None = None) -> None:
        self._stream = _nowhere() if stream is None else stream
        self._called = name

    def write(self, text: str) -> int:
        """Write as much of it as the encoding has; what it has not becomes an escape."""
        shown = printable(text, keep=LAYOUT) if text.replace(_UP, "") else text
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with suppress(LookupError):
            shown = shown.encode(encoding, "backslashreplace").decode(encoding)
        try:
            self._stream.write(shown)
        except OSError as error:
            self._fail(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """As a stream's."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As a stream's, without its errors."""
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_stream"), name)

    def _fail(self, error: OSError) -> None:
        """Write to nowhere from now on, so that what is buffered fails no more, at the end of the process neither."""
        name, self._called = self._called, None
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()
        self._stream = _nowhere()
        if name and not isinstance(error, BrokenPipeError):
            print(f"{name} cannot be written: {error.strerror}; the work goes on", file=sys.stderr)


def _nowhere() -> Any:
    return open(os.devnull, "w")


def install() -> None:
    """Let all that is printed from now on go through screens."""
    for handle in (0, 1, 2):  # one that was closed would be the next file's
        try:
            os.fstat(handle)
        except OSError:
            os.dup2(nowhere := os.open(os.devnull, os.O_RDWR), handle)
            if nowhere != handle:
                os.close(nowhere)
    if not isinstance(sys.stderr, Screen):
        sys.stderr = Screen(sys.stderr)  # type: ignore[assignment]
    if not isinstance(sys.stdout, Screen):
        sys.stdout = Screen(sys.stdout, "stdout")  # type: ignore[assignment]
