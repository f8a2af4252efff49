"""Splits for a data set without any: by a hash of each source's name, so that new items leave the others in place."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256

import numpy as np
from jaxtyping import Float64, Int8

from modalities.shared.datasets import SPLITS


def draw(
    keys: Sequence[str], shares: Sequence[float], categories: Sequence[object] | None = None
) -> tuple[list[str], int]:
    """A split for each item, see `draw_numbers`, and the number of exceptions."""
    found, moved, _ = draw_numbers(keys, shares, categories)
    return [SPLITS[i] for i in found.tolist()], moved


def draw_numbers(
    keys: Sequence[str], shares: Sequence[float], categories: Sequence[object] | np.ndarray | None = None
) -> tuple[Int8[np.ndarray, " N"], int, int]:
    """A split for each item by a hash of its key, independent of other items.

    Exceptions: for a class without training items, the source with the nearest hash is moved to train. In small sets,
    if a split has less than half its share, or too few items to be measured, the sources with the nearest hashes are
    moved into it, each with all of its items.

    Args:
        keys: key of each item's source.
        shares: shares of train and val; the rest is test.
        categories: class of each item; every class keeps training items if others can be moved.

    Returns:
        An index into `SPLITS` for each item, the number of exceptions, and the number of items that share a source.
    """
    places = places_of(keys)
    hashed = splits_at(places, shares)
    found = (
        hashed if categories is None or shares[0] <= 1e-6 else _with_all_trained(places, hashed, categories)
    )
    _, counts = np.unique(places, return_counts=True)
    pieces = int(counts[counts > 1].sum())
    share, least = _least(len(keys), shares)
    sizes = np.bincount(found, minlength=len(SPLITS))
    if all(sizes[i] >= least[split] for i, split in enumerate(SPLITS)):
        return found, int((found != hashed).sum()), pieces
    side = _moved(keys, found, share, least, [None] * len(keys) if categories is None else list(categories))
    found = np.array([SPLITS.index(side[key]) for key in keys], np.int8)
    return found, int((found != hashed).sum()), pieces


def _with_all_trained(
    places: np.ndarray, found: Int8[np.ndarray, " N"], categories: Sequence[object] | np.ndarray
) -> Int8[np.ndarray, " N"]:
    """Move items so that each class has some in train, together with all items of the same source."""
    listed = categories.tolist() if isinstance(categories, np.ndarray) else categories
    trained = {category for category, split in zip(listed, found.tolist(), strict=True) if split == 0}
    nearest: dict[object, int] = {}
    for i, category in enumerate(listed):
        if category is not None and category not in trained:
            best = nearest.setdefault(category, i)
            nearest[category] = i if places[i] < places[best] else best
    return np.where(np.isin(places, places[list(nearest.values())]), np.int8(0), found) if nearest else found


def _least(num: int, shares: Sequence[float]) -> tuple[dict[str, float], dict[str, int]]:
    """Share of each split, and the least number of items that it should have."""
    share = dict(zip(SPLITS, (*shares[:2], 1 - sum(shares[:2])), strict=True))
    few = {"train": 1, "val": 1 if num >= 6 else 0, "test": 2 if num >= 4 else 0}
    return share, {s: max(few[s], int(num * share[s] / 2)) if share[s] > 1e-6 else 0 for s in SPLITS}


def _moved(
    keys: Sequence[str],
    found: Int8[np.ndarray, " N"],
    share: Mapping[str, float],
    least: Mapping[str, int],
    categories: Sequence[object],
) -> dict[str, str]:
    """Key -> split, after filling up splits that are too small."""
    side = {key: SPLITS[i] for key, i in zip(keys, found.tolist(), strict=True)}
    counts, sizes = Counter(keys), Counter(side[key] for key in keys)
    ends: dict[str, Callable[[str], float]] = {
        "train": place_of,
        "val": lambda key: abs(place_of(key) - share["train"] - share["val"] / 2),
        "test": lambda key: -place_of(key),
    }
    of_key = dict(zip(keys, categories, strict=True))
    trained = Counter(c for key, c in zip(keys, categories, strict=True) if side[key] == "train")

    def cost(key: str, split: str) -> tuple[bool, float, str]:
        bares = side[key] == "train" and trained[of_key[key]] <= counts[key]
        return bares, ends[split](key), key

    for split in ("train", "test", "val"):
        while sizes[split] < least[split]:
            rich = [k for k in side if side[k] != split and sizes[side[k]] - counts[k] >= least[side[k]]]
            if not rich:
                break
            key = min(rich, key=partial(cost, split=split))
            trained[of_key[key]] += counts[key] * ((split == "train") - (side[key] == "train"))
            sizes[side[key]] -= counts[key]
            sizes[split] += counts[key]
            side[key] = split
    return side


def drawn_by_name(moved: int, pieces: int, shares: Sequence[float]) -> str:
    """Describe in words how `draw` split the data; `pieces` is the number of items that share a source."""
    parts = [f"{share:.0%}" for share in (*shares[:2], 1 - sum(shares[:2]))]
    words = f"drawn by name ({' '.join(parts)})"
    if pieces:
        words += f", {pieces} pieces by their sources"
    return words + (f", {moved} moved because the set or a class is small" if moved else "")


def splits_at(places: Float64[np.ndarray, " N"], shares: Sequence[float]) -> Int8[np.ndarray, " N"]:
    """The split of each item, an index into `SPLITS`, by the hash of its name, independent of other items.

    Args:
        shares: shares of train and val at least; the rest is test.
    """
    return np.searchsorted(np.cumsum(shares)[:2], places, side="right").astype(np.int8)


def place_of(name: str) -> float:
    """Hash a name to a number in [0, 1)."""
    return float(places_of([name])[0])


def places_of(names: Sequence[str]) -> Float64[np.ndarray, " N"]:
    """`place_of` each of many names."""
    how = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    digests = b"".join([sha256(name.encode(*how)).digest() for name in names])
    first = np.frombuffer(digests, ">u8")[::4] >> np.uint64(16)  # 48 of 256 bits
    return first / 2**48
