"""The listing of a data set, with no image read yet: names, labels, splits and locations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from ditmoe.outside import printable
from modalities.image.data.archive_members import Member, Written, member_bytes
from modalities.shared.file_table import FileTable
from modalities.shared.labels import named_by, read_names
from modalities.shared.on_demand import OnDemand
from modalities.shared.provenance import Origin
from modalities.shared.understood import Ignored, Understood

SHARES = (0.9, 0.05)
"""Shares of train and val for data without splits; the rest is test."""


@dataclass(frozen=True)
class InMemory:
    """A grey image of any size in memory."""

    pixels: UInt8[np.ndarray, "H W"]

    def image(self) -> Image.Image:
        """The image as RGB."""
        return Image.fromarray(self.pixels).convert("RGB")


@dataclass(frozen=True)
class Picture:
    """One image of a data set, usually not read yet; an array is a built-in image at the configured size."""

    name: str
    label: int
    source: Path | Member | InMemory | np.ndarray
    captions: Sequence[str] | Written = ()
    """Captions of a built-in image, or their location in an archive; those of a file are beside it."""

    def origin(self) -> Origin:
        """Its location, for `provenance`."""
        if isinstance(self.source, Path):
            return Origin((self.source,))
        if isinstance(self.source, Member):
            at = self.source
            part = f"{at.start} {at.size} {at.inflated} {at.deflated}"
            return Origin((at.tar,), part=part, read=partial(member_bytes, at))
        pixels = self.source.pixels if isinstance(self.source, InMemory) else self.source
        return Origin((), read=pixels.tobytes)


@dataclass(frozen=True)
class Listing:
    """The images of a data set: class names, the images of each split, and notes on what was ignored."""

    classes: list[str]
    pictures: Mapping[str, Sequence[Picture]]
    origin: str
    ignored: Ignored = field(default_factory=Ignored)
    notes: list[str] = field(default_factory=list)

    def understood(self, root: Path | None) -> Understood:
        """The summary of the listing."""
        labels = {split: labels_of(pictures) for split, pictures in self.pictures.items()}
        place, what = ("the built-in digits", "digit") if root is None else (root, "picture")
        if self.pictures["test"] is self.pictures["val"]:
            labels["val"] = []
        return Understood(place, what, self.classes, labels, self.origin, self.ignored, self.notes)


def labels_of(pictures: Sequence[Picture]) -> list[int]:
    """Labels of images, without materialising `ListedPictures`."""
    if (labels := getattr(pictures, "labels", None)) is not None:
        return labels.tolist()
    return [picture.label for picture in pictures]


class ListedPictures(OnDemand[Picture]):
    """Images in a folder, each materialised on access.

    Args:
        root: the folder.
        files: all paths below it.
        numbers: indices of these images among the files.
        labels: their labels.
    """

    def __init__(
        self, root: Path, files: FileTable, numbers: Int32[np.ndarray, " P"], labels: Int32[np.ndarray, " P"]
    ) -> None:
        self.root, self.files, self.numbers, self.labels = root, files, numbers, labels

    def __len__(self) -> int:
        return len(self.numbers)

    def make(self, number: int) -> Picture:
        parts = self.files[int(self.numbers[number])]
        return Picture(printable("/".join(parts)), int(self.labels[number]), self.root.joinpath(*parts))


def with_test(
    classes: list[str],
    pictures: Mapping[str, Sequence[Picture]],
    origin: str,
    ignored: Ignored,
    notes: list[str],
) -> Listing:
    """Let the validation images also serve as test images if there are none (ImageNet)."""
    if not len(pictures["test"]) and len(pictures["val"]):
        pictures = {**pictures, "test": pictures["val"]}
        origin += "; val serves as test"
    return Listing(classes, pictures, origin, ignored, notes)


def labelled(root: Path, names: set[str], notes: list[str]) -> tuple[list[str], dict[str, int], int]:
    """Class names, the label of each name, and the label for no class."""
    classes, labels = _classes(root, names, notes)
    return (classes, labels, len(classes) if names else 0) if classes else (["picture"], {}, 0)


def _classes(root: Path, names: set[str], notes: list[str]) -> tuple[list[str], dict[str, int]]:
    """Class names, in the order of a classes.txt if there is one, and the label of each name.

    A classes.txt beside class folders only orders them, or names numbered ones.
    """
    lines = read_names(root)
    if lines is None or not names:
        return named_by(None, names, root)
    return named_by(lines, names, root / "classes.txt")


def endings(names: Sequence[str]) -> set[str]:
    """Lower-case suffixes of names, with the dot; for names without one, their last letter."""
    return {ending.lower() for ending in {name[name.rfind(".") :] for name in names}}
