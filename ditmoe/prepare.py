"""python -m ditmoe.prepare source=meshes/ out=data/: turns a person's own files into a data set."""

from pathlib import Path
from typing import Any

from ditmoe import build, cli


def prepare(config: dict[str, Any]) -> None:
    """The command; each modality knows how."""
    build.make(config["modality"]).prepare(Path(config["source"]), Path(config["out"]))


def main() -> None:
    """Entry point."""
    cli.run(prepare, "prepare")


if __name__ == "__main__":
    main()
