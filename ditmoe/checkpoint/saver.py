"""Writes checkpoints during training, in the foreground or in the background."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import store
from ditmoe.distributed import Ranks


class Saver:
    """Writes a run's checkpoints and removes outdated ones.

    In the background, the state is first copied to host memory, and training continues. A thread then writes the copy,
    with a process group of its own. The next save waits until the previous one is on disk.

    Args:
        folder: of the run.
        ranks: all of them save, each its own part.
        background: whether training continues while a checkpoint is written.
        keep_last, keep_every: keep this many of the last checkpoints, and those at multiples of this many steps.

    Attributes:
        saved: the last step that is on disk.
        begun: the last step whose saving began and has not failed.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, background: bool, keep_last: int, keep_every: int = 0
    ) -> None:
        self.folder, self.ranks = folder, ranks.separate_group() if background else ranks
        self.background, self.keep_last, self.keep_every = background, keep_last, keep_every
        self.saved = self.begun = 0
        self.thread: threading.Thread | None = None
        self.failure: Exception | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, or start writing it in the background.

        Raises:
            OSError, ValueError: if it, or the previous one in the background, cannot be written, or would replace a
                link; earlier ones stay unchanged.
        """
        self.finish()
        if not self.background:
            self._write(step, state)
            self.begun = step
            return
        self.begun = step
        self.thread = threading.Thread(target=self._try, args=(step, _copied(state)), name="saver")
        self.thread.start()

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is on disk.

        Raises:
            OSError, ValueError: if it could not be written.
        """
        if self.thread is None:
            return
        self.thread.join()
        self.thread, failure, self.failure = None, self.failure, None
        if failure is not None:
            self.begun = self.saved
            raise failure

    def _try(self, step: int, state: Mapping[str, Any]) -> None:
        try:
            self._write(step, state)
        except Exception as error:  # which would end its thread only
            self.failure = error

    def _write(self, step: int, state: Mapping[str, Any]) -> None:
        store.save(self.folder, step, state, self.ranks)
        self.saved = step
        self.prune()

    def prune(self) -> None:
        """Remove outdated checkpoints. Errors are ignored."""
        with suppress(OSError):  # the next save tries again
            if self.ranks.rank == 0:
                store.keep(self.folder, self.keep_last, self.keep_every, self.saved)


def _copied(state: Mapping[str, Any]) -> Any:
    """A copy of a state in host memory."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(StagingOptions(False, False, False, False))
    try:
        return stager.stage(dict(state))
    finally:
        stager.close()
