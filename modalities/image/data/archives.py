"""Image archives of any format: their splits, and detection of labels that are mere indices."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from modalities.image.data.archive_members import Found
from modalities.image.data.tars import read_tar
from modalities.image.data.zips import read_zip
from modalities.shared.layout import split_within, split_word
from modalities.shared.understood import Ignored

ARCHIVES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
_MANY = 16
"""Number of samples from which distinct labels for all of them are taken for sample indices rather than classes."""


def split_of_shard(parts: tuple[str, ...]) -> str | None:
    """The split of a shard by its path: train/000.tar, imagenet-val-000017.tar."""
    *folders, name = parts
    for folder in folders:
        if split := split_word(folder):
            return split
    stem = (
        name.partition(".")[0] if name.lower().endswith((".tar.gz", ".tar.xz")) else name.rpartition(".")[0]
    )
    found = split_within(stem)
    return found[0] if found else None


def read_archive(
    shard: Path, parts: tuple[str, ...], ignored: Ignored, notes: list[str], captions: bool = False
) -> Iterator[Found]:
    """List the images of one archive, and where their captions are if wanted.

    Raises:
        ValueError: with one line, if it is not an archive.
    """
    split, name = split_of_shard(parts), "/".join(parts)
    if shard.name.lower().endswith(".zip"):
        return read_zip(shard, name, split, ignored, notes, captions)
    return read_tar(shard, name, split, ignored, notes, captions)


def without_identities(found: list[Found], notes: list[str]) -> list[Found]:
    """Drop labels from `.index` files if they are distinct within every archive, since they only number the images."""
    by_tar: dict[Path, list[str | None]] = {}
    for of in found:
        if of.said_by == "index":
            by_tar.setdefault(of.member.tar, []).append(of.label)
    if max(map(len, by_tar.values()), default=0) < _MANY or any(
        len({*of}) < len(of) for of in by_tar.values()
    ):
        return found
    notes.append("the .index of each picture is another one, and so not taken for a class")
    return [replace(of, label=None) if of.said_by == "index" else of for of in found]
