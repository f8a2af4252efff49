"""Do samples show what their captions say? Counted on the built-in data.

    python -m ditmoe.train modality=video conditioning=text name=text
    python -m benchmarks.quality.text runs/video/text [runs/video/pooled ...] [--num 128] [--seed 0] [--guidance 4]
    python -m benchmarks.quality.text runs/video/text --given 1    # a picture and a sentence make a clip
    python -m benchmarks.quality.text runs/image/text --classes runs/image/default

Each run draws --num captions of held-out samples (of furniture, a fixed list), and the samples are compared with their
captions. Rows: "real" are the samples to which the captions belong; "other" compares the generated samples with each
other's captions, the score of a model that does not read them; "class" is what a run with class labels draws for the
classes that the captions name, with the same noise. With --given, the first frames of the real clips are given with
their captions ("given"), with the next clip's ("given, other": the way is then chance) and with no caption ("given,
none"); only ways and, since the frames show them, digits can be right. 95 % intervals over samples.

    clips     which digit moves which way, by a classifier of frames that learnt from real clips and from what the codec
              makes of them: both digits and both ways right, as pairs ("bound"); the digits alone; the ways alone; for
              captions of pairs that training has seen, and of those that it has not ("unseen")
    digits    class, by nearest real training picture; stroke and lean, where they are named, on the right side of the
              median of the class
    furniture kind, by the nearest training shape (Chamfer distance); number of legs, where the caption names one, by
              the count that wrote the captions ("at the floor") and by one that noise of a foot plate confuses less
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import options_of
from benchmarks.quality.clip_reading import of_clips, reader_of_clips
from ditmoe.conditioning import captions_of
from ditmoe.config.restore import Restored, restore
from ditmoe.config.words import parts_asked
from ditmoe.inference import ask, draw_from
from ditmoe.modality import Samples
from modalities.image.data import described as digits_in_words
from modalities.pointcloud.data.described import count_legs
from modalities.pointcloud.metrics.distance import pairwise
from modalities.shared.confidence import wilson
from modalities.shared.digits import NUMERALS

Row = dict[str, np.ndarray]
_NEIGHBOURS = 5


class Nearest:
    """Classes by the nearest of real training samples, by cosine.

    Args:
        x: (S, P) the samples, of any number of axes after the first.
    """

    def __init__(self, x: np.ndarray, labels: np.ndarray) -> None:
        self.x, self.labels = self._normal(x), labels

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Class of each."""
        votes = self.labels[np.argsort(-(self._normal(x) @ self.x.T), axis=1)[:, :_NEIGHBOURS]]
        return np.array([np.bincount(row, minlength=10).argmax() for row in votes])

    @staticmethod
    def _normal(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(len(x), -1).astype(np.float64)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def of_digits(images: np.ndarray, captions: Sequence[str], real: Samples) -> Row:
    """Per picture its class, and whether stroke and lean are as said, NaN where nothing is.

    Args:
        real: training pictures.
    """
    assert real.labels is not None
    read = Nearest(real.data.mean(-1), real.labels)(images.mean(-1))
    measures = {"stroke": digits_in_words.thickness, "lean": digits_in_words.lean}
    middle = {
        name: [np.median(of(real.data[real.labels == k].mean(-1))) for k in range(10)]
        for name, of in measures.items()
    }
    seen = {name: of(images.mean(-1)) for name, of in measures.items()}
    rows: dict[str, list[float]] = {"class": [], "stroke": [], "lean": []}
    for i, caption in enumerate(captions):
        label = next(k for k, name in enumerate(NUMERALS) if re.search(rf"\b{name}\b", caption))
        rows["class"].append(float(read[i] == label))
        for name, (high, low) in {
            "stroke": ("thick", "thin"),
            "lean": ("leaning right", "leaning left"),
        }.items():
            sign = (high in caption) - (low in caption)
            rows[name].append(float((seen[name][i] - middle[name][label]) * sign > 0) if sign else np.nan)
    return {name: np.array(row) for name, row in rows.items()}


SHAPES = [
    *(f"a {noun}" for noun in ("chair", "table", "sofa", "cabinet", "lamp", "bed")),
    *(
        "a chair with four legs",
        "a tall chair with four legs",
        "a chair with one leg",
        "a stool with one leg",
    ),
]
"""What is asked for of furniture."""
_KINDS = {"stool": "chair", "armchair": "chair", "couch": "sofa", "desk": "table", "wardrobe": "cabinet"}


def of_shapes(
    clouds: np.ndarray, captions: Sequence[str], real: Samples, told: Sequence[Sequence[str]]
) -> Row:
    """Per cloud whether the nearest training shape is of the kind, and has the legs, that were asked for.

    Args:
        told: the captions of each training shape.
    """
    nearest = pairwise(list(clouds), list(real.data), "cd").argmin(1)
    rows: dict[str, list[float]] = {"kind": [], "four legs": [], "one leg": [], "legs at the floor": []}
    for i, caption in enumerate(captions):
        kind = caption.split(" with ")[0].split()[-1]
        own = [one.split(" with ")[0].split()[-1] for one in told[nearest[i]]]
        rows["kind"].append(float(_KINDS.get(kind, kind) in [_KINDS.get(one, one) for one in own]))
        asked = caption.partition(" with ")[2]
        for legs, words in ((4, "four legs"), (1, "one leg")):
            right = float(count_legs(clouds[i], on_feet=True) == legs)
            rows[words].append(right if asked == words else np.nan)
        legs = {"four legs": 4, "one leg": 1}.get(asked)
        rows["legs at the floor"].append(np.nan if legs is None else float(count_legs(clouds[i]) == legs))
    return {name: np.array(row) for name, row in rows.items()}


def class_named(caption: str, classes: Sequence[str]) -> str:
    """The class that a caption of a digit or a piece of furniture is about."""
    words = caption.split(" with ")[0].split()
    if classes == [str(k) for k in range(10)]:
        return str(next(NUMERALS.index(word) for word in words if word in NUMERALS))
    return _KINDS.get(words[-1], words[-1])


def drawn(run: Restored, captions: Sequence[str], seed: int) -> np.ndarray:
    """One sample of each caption, or, of a run with class labels, of the class that it names."""
    words: dict[str, list[str]] = {"prompt": list(captions)}
    if "label" in run.model.conditioning.words and "prompt" not in run.model.conditioning.words:
        words = {"label": [class_named(caption, list(run.modality.classes)) for caption in captions]}
    asked = ask(run, len(captions), seed, **words)
    samples = draw_from(run, asked, seed=seed)
    assert samples is not None
    return samples.data


def continued(run: Restored, clips: np.ndarray, captions: Sequence[str], first: int, seed: int) -> np.ndarray:
    """Of each clip its first frames, continued as its caption says; an empty caption says nothing."""
    made = []
    for number, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        shape = {"frames": len(clip)}
        parts = parts_asked(run.modality, clip[:first], shape, {}, run.config["given"])
        words = {"prompt": caption} if caption else {"label": "none"}
        samples = draw_from(run, ask(run, 1, seed, **words), seed=seed + number, parts=parts, **shape)
        assert samples is not None
        made.append(samples.data[0])
    return np.stack(made)


def compared(
    run: Restored, num: int, seed: int, classes: Restored | None = None, given: int = 0
) -> dict[str, Row]:
    """Rows of the table of a run.

    Args:
        classes: a run of the same modality with class labels.
        given: frames of the real clips that samples continue.
    """
    modality: Any = run.modality
    if given and modality.name != "video":
        raise SystemExit(f"--given is for clips, got a run of modality={modality.name}")
    if modality.name == "pointcloud":
        data, told = modality.data, modality.data.captioner
        real = modality.reference("train")
        captions = [SHAPES[i % len(SHAPES)] for i in range(num)]
        each = [told.of(shape) for shape in data.split("train")]
        made = drawn(run, captions, seed)
        shapes = {
            "drawn": of_shapes(made, captions, real, each),
            "other": of_shapes(made, [captions[i - 2] for i in range(num)], real, each),  # of others' legs
        }
        if classes:
            shapes["class"] = of_shapes(drawn(classes, captions, seed), captions, real, each)
        return shapes
    rows: dict[str, Row] = {}
    if modality.name == "video":
        reader = reader_of_clips(modality.data, lambda clips: modality.decode(modality.encode(clips)))
    splits = {"": "test"} | ({"unseen ": "val"} if modality.name == "video" else {})
    for name, split in splits.items():
        reference = modality.reference(split)
        captions = (captions_of(reference.asked) or [])[:num]
        if modality.name == "video":
            measure: Callable[..., Row] = lambda x, said, reader=reader: of_clips(x, said, reader)  # noqa: E731
        else:
            train = modality.reference("train")
            measure = lambda x, said, train=train: of_digits(x, said, train)  # noqa: E731
        rows[f"{name}real"] = measure(reference.data[: len(captions)], captions)
        if given:
            clips, following = reference.data[: len(captions)], [*captions[1:], captions[0]]
            for row, said in {"": captions, ", other": following, ", none": [""] * len(captions)}.items():
                rows[f"{name}given{row}"] = measure(continued(run, clips, said, given, seed), captions)
            continue
        made = drawn(run, captions, seed)
        rows |= {
            f"{name}drawn": measure(made, captions),
            f"{name}other": measure(made, [*captions[1:], captions[0]]),
        }
        if classes:
            rows[f"{name}class"] = measure(drawn(classes, captions, seed), captions)
    return rows


def printed(rows: dict[str, Row]) -> str:
    """A table in Markdown, with 95 % intervals (Wilson)."""
    names = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, row in rows.items():
        cells = []
        for of in row.values():
            kept = of[np.isfinite(of)]
            low, high = wilson(kept.mean(), len(kept)) if len(kept) else (np.nan, np.nan)
            cells.append(f"{kept.mean():.2f} ({low:.2f} .. {high:.2f})" if len(kept) else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--classes", type=Path, help="a run with class labels, drawn beside them")
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--given", type=int, default=0, help="frames of real clips that are given with the captions"
    )
    parser.add_argument("--guidance", type=float, help="in place of that of each run")
    options = parser.parse_args()
    torch.manual_seed(0)

    def opened(path: Path) -> Restored:
        run = restore(path)
        if options.guidance is not None:
            run.config["sampling"]["guidance"] = options.guidance
        return run

    classes = opened(options.classes) if options.classes else None
    for path in options.runs:
        rows = compared(opened(path), options.num, options.seed, classes, options.given)
        print(f"\n{path}, {options.num} captions, seed {options.seed}\n\n{printed(rows)}", flush=True)


if __name__ == "__main__":
    main()
