"""python -m ditmoe.train_codec modality=video out=codec/: trains only a modality's own autoencoder."""

import sys
from pathlib import Path
from typing import Any

from ditmoe.config import cli


def train_codec(config: dict[str, Any]) -> None:
    """Run the command, for a modality that has such an autoencoder."""
    from ditmoe.config import build  # torch: only after checking the options
    from ditmoe.modality import CodecTraining
    from ditmoe.training import Stop

    modality = CodecTraining.of(build.make_whole(config["modality"]), "train_codec")
    with (stop := Stop()).listening():
        if not modality.train_codec(Path(config["out"]), config["seed"], stop.agreed):
            sys.exit(130)


def main() -> None:
    """Entry point."""
    cli.run(train_codec, "train_codec")


if __name__ == "__main__":
    main()
