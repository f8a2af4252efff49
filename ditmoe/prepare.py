"""python -m ditmoe.prepare source=meshes/ out=data/: turns your own files into a data set."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ditmoe.config import cli
from ditmoe.outside import at_home


def prepare(config: dict[str, Any]) -> None:
    """Run the command of the modality."""
    if not reads_captions(config):
        for word in ("source", "out"):
            if config[word] is None:
                raise ValueError(f"{word} must be given: {word}=...")
    elif config["source"] is not None or config["out"] is not None:
        raise ValueError(
            "conditioning=text encodes the captions of the data that training reads: leave source and out away, and "
            "give modality.data.root=... (conditioning.states is where they are kept)"
        )
    from ditmoe.checkpoint.alone import alone_in
    from ditmoe.config import build  # torch: only after checking the options
    from ditmoe.modality import Preparation

    try:
        if reads_captions(config):
            encode_captions(config)
            return
        modality, out = Preparation.of(build.make_whole(config["modality"]), "prepare"), Path(config["out"])
        with nullcontext() if config["check"] else alone_in(out):
            modality.prepare(Path(config["source"]), out, config["check"])
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from there", file=sys.stderr)
        sys.exit(130)


def reads_captions(config: dict[str, Any]) -> bool:
    """Whether to encode captions instead of data."""
    return "encoder" in config.get("conditioning", {})


def encode_captions(config: dict[str, Any]) -> None:
    """Write the text embedding of each caption of all splits to the folder where training looks for it."""
    from ditmoe.checkpoint.alone import alone_in
    from ditmoe.config import build
    from ditmoe.modality import Captions
    from ditmoe.text import Pretrained, prepare_captions

    modality = Captions.of(build.make_whole(config["modality"]), "prepare conditioning=text")
    encoder, folder = build.make(config["conditioning"]["encoder"])(), config["conditioning"]["states"]
    if not isinstance(encoder, Pretrained):
        raise ValueError(
            "an encoder that is trained with the model has nothing to be prepared: it reads words"
        )
    if folder is None:
        raise ValueError("conditioning.states must name a folder for what is encoded")
    splits = {split: modality.captions_of_split(split) for split in ("train", "val", "test")}
    place = at_home(folder)
    with alone_in(place):
        prepare_captions(splits.items(), encoder, place)


def main() -> None:
    """Entry point."""
    cli.run(prepare, "prepare")


if __name__ == "__main__":
    main()
