"""Can the digits of a default run of clips be read, and are there two of them?

    python -m ditmoe.train modality=video name=clips
    python -m benchmarks.quality.clip_digits runs/video/clips [...] [--num 128] [--seed 0] [--guidance 4]

Each run draws --num clips, the ten classes in turn. A classifier of digits, trained on real clips and on what the codec
makes of them, reads both digits of each clip over its first half.

    digits    of all digits, the share read as the class that was asked for
    clips     of all clips, the share in which both are
    two       of all frames, the share in which two digits are seen (`law/two` of `evaluate`)
    0 ... 9   digits, by class

Rows: real clips of the test split, the same through the codec and back, and each run. 95 % intervals over clips.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8

from benchmarks import options_of
from benchmarks.quality.clip_reading import Reader, pieces_of, reader_of_clips
from ditmoe.config.restore import restore
from ditmoe.inference import ask, draw_from
from modalities.shared.confidence import share_of_groups, wilson
from modalities.video.metrics.digit_laws import obeyed


def read_digits(
    clips: UInt8[np.ndarray, "S T H W 3"], labels: Int64[np.ndarray, " S"], reader: Reader
) -> Bool[np.ndarray, "S 2"]:
    """Whether each of the two digits of a clip is read as its class."""
    crops = [pieces_of(clip)[0] for clip in clips]
    return np.array(
        [[reader(each[:, k]) == label for k in range(2)] for each, label in zip(crops, labels, strict=True)]
    )


def row(name: str, clips: np.ndarray, labels: np.ndarray, reader: Reader, side: int) -> str:
    """A row of the table, in Markdown."""
    right = read_digits(clips, labels, reader)
    group = np.arange(len(clips)).repeat(2)
    two = obeyed(clips, side)["two"].sum(0)
    cells = [
        _cell(*share_of_groups(right.ravel(), group)),
        _cell(float(right.all(1).mean()), len(right)),
        f"{two[0] / two[1]:.2f}",
        *(f"{right[labels == k].mean():.2f}" if (labels == k).any() else "" for k in range(10)),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def _cell(share: float, count: float) -> str:
    low, high = wilson(share, count)
    return f"{share:.2f} ({low:.2f} .. {high:.2f})"


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, help="in place of that of each run")
    options = parser.parse_args()
    heads = ["", "digits", "clips", "two", *map(str, range(10))]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for path in options.runs:
        run = restore(path)
        modality: Any = run.modality
        if modality.name != "video" or modality.data.classes != [str(k) for k in range(10)]:
            raise SystemExit(f"{path} must be a run of the built-in clips with class labels")
        if options.guidance is not None:
            run.config["sampling"]["guidance"] = options.guidance

        def through(clips: np.ndarray, modality: Any = modality) -> np.ndarray:
            return modality.decode(modality.encode(clips))

        torch.manual_seed(0)
        reader = reader_of_clips(modality.data, through)
        real, side = modality.reference("test"), modality.data.side
        clips = real.data[: options.num]
        labels = np.arange(options.num) % 10
        asked = ask(run, options.num, options.seed, label=[str(k) for k in labels])
        samples = draw_from(run, asked, seed=options.seed)
        assert samples is not None
        print(row("real", clips, real.labels[: options.num], reader, side))
        print(row("codec", through(clips), real.labels[: options.num], reader, side))
        print(row(str(path), samples.data, labels, reader, side), flush=True)


if __name__ == "__main__":
    main()
