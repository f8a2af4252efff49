"""python -m ditmoe.prepare source=meshes/ out=data/: turns a person's own files into a data set."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ditmoe.config import cli


def prepare(config: dict[str, Any]) -> None:
    """The command; each modality knows how."""
    from ditmoe.checkpoint.atomic import alone_in
    from ditmoe.config import build  # torch, which a mistake in the words should not wait for
    from ditmoe.modality import Preparation

    modality = Preparation.of(build.make(config["modality"]), "prepare")
    out = Path(config["out"])
    try:
        with nullcontext() if config["check"] else alone_in(out):
            modality.prepare(Path(config["source"]), out, config["check"])
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from there", file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """Entry point."""
    cli.run(prepare, "prepare")


if __name__ == "__main__":
    main()
