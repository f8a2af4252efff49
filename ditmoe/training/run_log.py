"""The log of a run: log.jsonl, with each step exactly once despite interruptions, and TensorBoard events."""

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from ditmoe.distributed import say
from ditmoe.outside import open_regular, printable

_BEGIN = b'{"step": '
"""The first bytes of a record."""
_ALWAYS = {"step", "skipped"}
"""Entries of every record."""


class Recorder:
    """Writes records to `log.jsonl` and to TensorBoard, as whole lines or not at all.

    A run resumed at step N may have logged later steps, or half a line, before it was killed: these are removed. A full
    disk does not end a run: records that could not be written are kept and written with the next.

    Args:
        folder: of the run; created if missing.
        step: the step at which the run resumes.

    Raises:
        ValueError: if a new run would cut a log.jsonl that is none of a run.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "log.jsonl"
        data = b""
        if os.path.lexists(self.file):
            with open_regular(self.file) as stream:  # raises if it is a pipe
                data = stream.read()
        if step == 0 and not _is_ours(data):
            raise ValueError(
                f"{printable(self.file)} must be the log of a run, or not exist, got something else: remove it, or "
                "choose another name= or out="
            )
        self.handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        self.size = _whole(data, step)
        os.truncate(self.handle, self.size)
        self.pending = b""
        self.told = False
        self.board: Any = None
        self._hook = threading.excepthook
        threading.excepthook = self._tell_of_thread
        try:
            self.board = SummaryWriter(str(folder), purge_step=step)
        except OSError as error:
            self._tell_of_board(error)

    def write(self, record: dict[str, Any]) -> None:
        """Add one record; nested values go to `log.jsonl` only."""
        self.pending += (json.dumps(record) + "\n").encode()
        try:
            self.flush()
        except OSError as error:
            self._tell(f"{self.file} cannot be written, trying again with each record: {error.strerror}")
        try:
            for name, value in record.items():
                if self.board and isinstance(value, int | float):
                    self.board.add_scalar(name, value, record["step"])
        except OSError:  # TensorBoard's thread has ended
            self.board = None

    def flush(self, sync: bool = False) -> None:
        """Write pending records, with `sync` through to the disk.

        Raises:
            OSError: if that fails; the next call continues where this one stopped.
        """
        while self.pending:
            written = os.pwrite(self.handle, self.pending, self.size)
            self.size, self.pending = self.size + written, self.pending[written:]
        if sync:
            os.fsync(self.handle)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: Any) -> None:
        os.close(self.handle)
        if self.board:
            with suppress(OSError):  # after one, its thread may still be about to tell it
                self.board.close()
                threading.excepthook = self._hook

    def _tell_of_thread(self, ended: Any) -> None:
        """One line in place of a trace, where TensorBoard's thread cannot write."""
        if isinstance(ended.exc_value, OSError) and type(ended.thread).__module__.startswith("tensorboard."):
            self._tell_of_board(ended.exc_value)
        else:
            self._hook(ended)

    def _tell_of_board(self, error: OSError) -> None:
        self._tell(f"TensorBoard's events cannot be written: {error.strerror}; the run goes on without them")

    def _tell(self, line: str) -> None:
        if not self.told:
            self.told = True  # before it is said: TensorBoard's thread may be about to
            say(line, error=True)


def _is_ours(data: bytes) -> bool:
    """Whether this is a run's log: by its first record, of which a killed run may have written only the beginning."""
    first, end, _ = data.partition(b"\n")
    if not first.startswith(_BEGIN[: len(data)]):
        return False
    try:
        return not end or json.loads(first).keys() >= _ALWAYS
    except (ValueError, AttributeError, RecursionError):
        return False


def _whole(data: bytes, step: int) -> int:
    """Length of the leading part that consists of whole lines of steps up to this one."""
    kept = start = 0
    while end := data.find(b"\n", start) + 1:
        try:
            if json.loads(data[start:end])["step"] > step:
                break
            kept = end
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        start = end
    return kept
