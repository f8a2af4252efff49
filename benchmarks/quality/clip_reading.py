"""Which digit of a built-in clip moves which way, as its caption says and as its frames show."""

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import map_coordinates
from torch import Tensor

from benchmarks.quality.class_control import classifier, learn
from modalities.shared.digits import NUMERALS
from modalities.video.data.moving_digits import MovingDigits

SAID = re.compile(r"an? (?P<name>\w+)(?: (?P<place>(?:in|at|on) the [a-z ]+?))? moving (?P<way>\w+)")
"""What a caption says of a digit."""
_CROP = 14


def said_of_clip(caption: str) -> set[tuple[str, str]]:
    """Which digits move which way, in words."""
    return {(one["name"], one["way"]) for one in SAID.finditer(caption)}


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


def of_clips(clips: np.ndarray, captions: Sequence[str], reader: Reader) -> dict[str, np.ndarray]:
    """Per clip what of its caption is seen."""
    rows: dict[str, list[bool]] = {"bound": [], "digits": [], "ways": []}
    for clip, caption in zip(clips, captions, strict=True):
        said, seen = said_of_clip(caption), seen_in_clip(clip, reader)
        rows["bound"].append(said == seen)
        for name, at in (("digits", 0), ("ways", 1)):
            rows[name].append({one[at] for one in said} == {one[at] for one in seen})
    return {name: np.array(row, float) for name, row in rows.items()}
