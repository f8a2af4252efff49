"""Do samples show what their captions say? Counted on the built-in data.

    python -m ditmoe.train modality=video conditioning=text name=text
    python -m benchmarks.quality.text runs/video/text [runs/video/pooled ...] [--num 128] [--seed 0]
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
    furniture kind, by the nearest training shape (Chamfer distance); number of legs, where the caption names one
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import map_coordinates
from torch import Tensor

from benchmarks import options_of
from benchmarks.quality.class_control import classifier, learn
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
from modalities.video.data.moving_digits import MovingDigits

Row = dict[str, np.ndarray]
SAID = re.compile(r"an? (\w+)(?: (?:in|at|on) the [a-z ]+?)? moving (\w+)")
_NEIGHBOURS, _CROP = 5, 14


def said_of_clip(caption: str) -> set[tuple[str, str]]:
    """Which digits move which way, in words."""
    return set(SAID.findall(caption))


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


Reader = Callable[[np.ndarray], int]
"""The digit that all of some crops show, (n, c, c) from 0 to 1."""


def reader_of_clips(
    data: MovingDigits, codec: Callable[[np.ndarray], np.ndarray] | None = None, num: int = 300
) -> Reader:
    """A classifier of digits that `pieces_of` cut out of a clip, trained on real clips, and on what a codec makes of
    them: samples come out of it, too.

    Args:
        codec: encodes and decodes clips (S, T, H, W, 3).
        num: training clips.
    """
    torch.manual_seed(0)
    scenes = [data.scene("train", 99, number) for number in range(num)]
    clips = np.stack([data.drawn(scene, "train") for scene in scenes])
    crops, labels = [], []
    for seen in (clips, *([codec(clips)] if codec else [])):
        for scene, clip in zip(scenes, seen, strict=True):
            pieces, centres = pieces_of(clip)
            true = scene.places[: len(centres)] + data.side / 2
            for k in range(2):
                nearest = np.linalg.norm(centres[:, k, None] - true, axis=-1).mean(0).argmin()
                crops.append(pieces[:, k])
                labels += [int(scene.classes[nearest])] * len(centres)
    model = classifier(len(NUMERALS))
    learn(model, _tensor(np.concatenate(crops)), torch.tensor(labels), epochs=8)
    model.eval()

    @torch.no_grad()
    def read(crops: np.ndarray) -> int:
        return int(model(_tensor(crops)).log_softmax(-1).mean(0).argmax())

    return read


def _tensor(crops: Float[np.ndarray, "n c c"]) -> Float[Tensor, "n 3 c c"]:
    return torch.from_numpy(crops).float()[:, None].repeat(1, 3, 1, 1) * 2 - 1


def centre_of(grey: Float[np.ndarray, "H W"]) -> np.ndarray:
    """Of its brightness, row and column."""
    weight, (rows, columns) = max(grey.sum(), 1e-9), np.indices(grey.shape)
    return np.array([(grey * rows).sum(), (grey * columns).sum()]) / weight


def crop(grey: Float[np.ndarray, "H W"], centre: np.ndarray) -> Float[np.ndarray, "c c"]:
    """What lies around a place between pixels, dark beyond the border."""
    places = np.indices((_CROP, _CROP)) + (centre - (_CROP - 1) / 2)[:, None, None]
    return map_coordinates(grey, places, order=1)


def follow(grey: Float[np.ndarray, "T H W"]) -> tuple[Float[np.ndarray, "T 2 2"], np.ndarray]:
    """Centres of two pieces in each frame, by two means of the brightness; and which piece each pixel is of."""
    places = np.stack(np.indices(grey.shape[1:]), -1).reshape(-1, 2).astype(float)
    centres, pieces, last = [], [], None
    for frame in grey:
        ink = np.maximum(frame.ravel() - 0.15, 0)
        starts = [last] if last is not None else _starts(places, ink)
        last, piece = min((_two_means(places, ink, start) for start in starts), key=lambda m: m[2])[:2]
        centres.append(last)
        pieces.append(piece.reshape(frame.shape))
    return np.stack(centres), np.stack(pieces)


def _starts(places: np.ndarray, ink: np.ndarray) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    share = ink / ink.sum() if ink.sum() > 0 else np.full(len(ink), 1 / len(ink))
    return [places[rng.choice(len(places), 2, replace=True, p=share)] for _ in range(12)]


def _two_means(
    places: np.ndarray, ink: np.ndarray, means: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    for _ in range(20):
        distance = ((places[:, None] - means) ** 2).sum(-1)
        piece = distance.argmin(1)
        weights = np.stack([ink * (piece == k) for k in range(2)])
        means = (weights @ places + 1e-9 * means) / (weights.sum(1, keepdims=True) + 1e-9)
    return means, piece, float((distance.min(1) * ink).sum())


def pieces_of(clip: np.ndarray) -> tuple[Float[np.ndarray, "t 2 c c"], Float[np.ndarray, "t 2 2"]]:
    """Both digits of each frame until the middle of a clip, cut out, and their centres."""
    grey = clip[: 1 + len(clip) // 2].mean(-1) / 255
    centres, owner = follow(grey)
    crops = [
        [crop(frame * (of == k), at[k]) for k in range(2)]
        for frame, of, at in zip(grey, owner, centres, strict=True)
    ]
    return np.array(crops), centres


def seen_in_clip(clip: np.ndarray, read: Reader) -> set[tuple[str, str]]:
    """Which digits move which way until the middle of a clip, in words."""
    crops, centres = pieces_of(clip)
    found = set()
    for k in range(2):
        row, column = centres[-1, k] - centres[0, k]
        way = ("right" if column > 0 else "left") if abs(column) > abs(row) else "down" if row > 0 else "up"
        found.add((NUMERALS[read(crops[:, k])], way))
    return found


def of_clips(clips: np.ndarray, captions: Sequence[str], reader: Reader) -> Row:
    """Per clip what of its caption is seen."""
    rows: dict[str, list[bool]] = {"bound": [], "digits": [], "ways": []}
    for clip, caption in zip(clips, captions, strict=True):
        said, seen = said_of_clip(caption), seen_in_clip(clip, reader)
        rows["bound"].append(said == seen)
        for name, at in (("digits", 0), ("ways", 1)):
            rows[name].append({one[at] for one in said} == {one[at] for one in seen})
    return {name: np.array(row, float) for name, row in rows.items()}


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
    rows: dict[str, list[float]] = {"kind": [], "legs": []}
    for i, caption in enumerate(captions):
        kind = caption.split(" with ")[0].split()[-1]
        own = [one.split(" with ")[0].split()[-1] for one in told[nearest[i]]]
        rows["kind"].append(float(_KINDS.get(kind, kind) in [_KINDS.get(one, one) for one in own]))
        legs = {"four legs": 4, "one leg": 1}.get(caption.partition(" with ")[2])
        rows["legs"].append(np.nan if legs is None else float(count_legs(clouds[i]) == legs))
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
    if modality.name == "pointcloud":
        data, told = modality.data, modality.data.captioner
        real = modality.reference("train")
        captions = [SHAPES[i % len(SHAPES)] for i in range(num)]
        each = [told.of(shape) for shape in data.split("train")]
        made = drawn(run, captions, seed)
        shapes = {
            "drawn": of_shapes(made, captions, real, each),
            "other": of_shapes(made, [captions[i - 1] for i in range(num)], real, each),
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
    options = parser.parse_args()
    torch.manual_seed(0)
    classes = restore(options.classes) if options.classes else None
    for path in options.runs:
        rows = compared(restore(path), options.num, options.seed, classes, options.given)
        print(f"\n{path}, {options.num} captions, seed {options.seed}\n\n{printed(rows)}", flush=True)


if __name__ == "__main__":
    main()
