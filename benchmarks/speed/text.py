"""What text costs: python -m benchmarks.speed.text [--rounds 8] [words of configs/train.yaml].

A training step of the default model with classes, and with captions: as configured, where every second block attends to
their tokens; where every block does; and where the model has only the one vector; interleaved on one machine. Each
caption is encoded once, before these steps and not in each; the cost of encoding is printed separately.
"""

import argparse
import itertools
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.speed.timing import interleaved, keep_memory, table
from ditmoe.conditioning import TEXT, Condition, text_rows
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.modality import Captions
from ditmoe.train import make_trainer

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WAYS = ("up", "down", "left", "right")
CAPTIONS = [
    f"two digits: a {a} moving {way} and a {b} moving {other}"
    for (a, way), (b, other) in itertools.product(itertools.product(NUMBERS, WAYS), repeat=2)
][::7]
"""Of some length: what a clip of two digits may be said to be."""
VARIANTS = {
    "classes": [],
    "text": ["conditioning=text"],
    "text, to all blocks": ["conditioning=text", "model.cross_layers=null"],
    "text, the vector alone": ["conditioning=text", "conditioning.tokens=false"],
}


def captioned(config: dict[str, Any]) -> Any:
    """The modality of a configuration, each of whose samples has one of `CAPTIONS`."""
    section = {name: value for name, value in config["modality"].items() if name != "captions"}
    made: Any = build.make(section)

    class Told(type(made), Captions):  # type: ignore[misc]
        caption_words = property(lambda self: sorted({word for c in CAPTIONS for word in c.split()}))

        def captions_of_split(self, split: str) -> list[str]:
            return CAPTIONS

        def batch(self, size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> Any:
            x, labels = super().batch(size, seed, step, rank, world)
            told = [CAPTIONS[(step * size + i) % len(CAPTIONS)] for i in range(size)]
            values = {"label": labels, TEXT: text_rows(told)}
            return x, Condition(values, torch.zeros(size, dtype=torch.bool))

    made.__class__ = Told
    return made


def main() -> None:
    """Print medians, and ratios to the model of classes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="of configs/train.yaml")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    keep_memory()
    rounds, words = options.rounds, options.words
    steps = {}
    with TemporaryDirectory() as folder:
        for name, more in VARIANTS.items():
            config = composed("train", [*words, *more, "conditioning.states=null"] if more else words)
            modality = captioned(config) if more else build.make_modality(config)
            trainer = make_trainer(config, modality, Path(folder) / name.replace(" ", "-"))
            if more:
                start, read = time.process_time(), trainer.model.conditioning.read
                some = CAPTIONS[:50]
                read(Condition({TEXT: text_rows(some)}, torch.zeros(len(some), dtype=torch.bool)))
                each = (time.process_time() - start) / len(some)
                rest = CAPTIONS[50:]
                read(Condition({TEXT: text_rows(rest)}, torch.zeros(len(rest), dtype=torch.bool)))
                told = f"{name}: {1e3 * each:.1f} ms of the processor for a caption, once"
                lookup = getattr(trainer.model.conditioning.encoder, "lookup", None)
                print(told + (f", {lookup.size / 2**20:.1f} MiB for {len(CAPTIONS)}" if lookup else ""))

            def step(trainer: Any = trainer) -> None:
                trainer._train_step()
                trainer.step += 1

            steps[name] = step
        seconds = interleaved(steps, rounds, trainer.device)
    print(f"a training step, {trainer.device}, {torch.get_num_threads()} threads, {' '.join(words)}")
    print("\n".join(table(seconds, "classes")))


if __name__ == "__main__":
    main()
