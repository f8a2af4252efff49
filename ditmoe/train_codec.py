"""python -m ditmoe.train_codec modality=video out=codec/: trains only a modality's own autoencoder."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ditmoe.config import cli


def train_codec(config: dict[str, Any]) -> None:
    """Run the command, for a modality that has such an autoencoder."""
    from ditmoe.config import build  # torch: only after checking the options
    from ditmoe.modality import CodecTraining

    modality = CodecTraining.of(build.make_whole(config["modality"]), "train_codec")
    with stoppable() as stopped:
        if not modality.train_codec(Path(config["out"]), config["seed"], stopped):
            sys.exit(130)


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C or SIGTERM has asked to stop; a second one ends everything at once."""
    requests = 0

    def request(number: int, frame: Any) -> None:
        nonlocal requests
        requests += 1
        if requests > 1:
            raise KeyboardInterrupt
        print("\nstopping after this step (once more to stop at once)", flush=True)

    previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requests > 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main() -> None:
    """Entry point."""
    cli.run(train_codec, "train_codec")


if __name__ == "__main__":
    main()
