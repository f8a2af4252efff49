"""How far a command is, with an estimate of the rest."""

import sys
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Counts passes on a bar, which is gone at the end; on a screen often, in a log file now and then."""

    def __init__(self, what: str, total: int, shown: bool) -> None:
        often = 0.1 if sys.stderr.isatty() else 10
        self.bar = tqdm(total=total, desc=what, disable=not shown, leave=False, mininterval=often)

    def __call__(self) -> None:
        self.bar.update()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
