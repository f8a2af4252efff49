"""python -m ditmoe.prepare source=meshes/ out=data/: turns a person's own files into a data set."""

from pathlib import Path
from typing import Any

from hydra.utils import get_class

from ditmoe import cli


def prepare(config: dict[str, Any]) -> None:
    """The command; each modality knows how."""
    modality = get_class(config["modality"]["_target_"])
    print(modality.prepare(Path(config["source"]), Path(config["out"]), **config["options"]))


def main() -> None:
    """Entry point."""
    cli.run(prepare, "prepare")


if __name__ == "__main__":
    main()
