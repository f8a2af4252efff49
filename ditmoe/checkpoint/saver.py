"""When checkpoints are written: while training waits, or while it goes on."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import store
from ditmoe.distributed import Ranks


class Saver:
    """Writes a run's checkpoints and removes those that are not to be kept.

    In the background a step's state is first copied, into the host's memory, so that training may go on; then a thread
    writes it, with collectives of its own. A new one waits until the one before is on the disk.

    Args:
        folder: of the run.
        ranks: all of which save, each what it has.
        background: whether training goes on meanwhile.
        keep_last, keep_every: checkpoints that are kept: the last ones, and those at multiples of so many steps.

    Attributes:
        saved: the last step that is on the disk.
        begun: the last step that was to be written, and has not failed.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, background: bool, keep_last: int, keep_every: int = 0
    ) -> None:
        self.folder, self.ranks = folder, ranks.separate_group() if background else ranks
        self.background, self.keep_last, self.keep_every = background, keep_last, keep_every
        self.saved = self.begun = 0
        self.thread: threading.Thread | None = None
        self.failure: OSError | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, or begin to.

        Raises:
            OSError: if it, or the one before in the background, cannot be written; the earlier ones are as they were.
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
        """Wait for what is being written.

        Raises:
            OSError: if that failed.
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
        except OSError as error:
            self.failure = error

    def _write(self, step: int, state: Mapping[str, Any]) -> None:
        store.save(self.folder, step, state, self.ranks)
        self.saved = step
        self.prune()

    def prune(self) -> None:
        """Remove the checkpoints that are not to be kept, as far as that can be done."""
        with suppress(OSError):  # the next save tries again
            if self.ranks.rank == 0:
                store.keep(self.folder, self.keep_last, self.keep_every, self.saved)


def _copied(state: Mapping[str, Any]) -> Any:
    """A state in the host's memory that nobody changes."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(StagingOptions(False, False, False, False))
    try:
        return stager.stage(dict(state))
    finally:
        stager.close()
