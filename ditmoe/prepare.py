"""python -m ditmoe.prepare source=meshes/ out=data/: turns a person's own files into a data set."""

import sys
from pathlib import Path
from typing import Any

from ditmoe.config import cli


def prepare(config: dict[str, Any]) -> None:
    """The command; each modality knows how."""
    from ditmoe.config import build  # torch, which a mistake in the words should not wait for
    from ditmoe.modality import Preparation

    modality = Preparation.of(build.make(config["modality"]), "prepare")
    try:
        modality.prepare(Path(config["source"]), Path(config["out"]), config["check"])
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from there", file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """Entry point."""
    cli.run(prepare, "prepare")


if __name__ == "__main__":
    main()
