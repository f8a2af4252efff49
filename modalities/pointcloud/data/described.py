"""Captions of the built-in furniture, from its names and from measurements of its points."""

import numpy as np
from jaxtyping import Float, Int64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

SLABS = ((0.04, 0.14), (0.08, 0.18), (0.12, 0.22), (0.16, 0.26))
"""Ranges of relative height in which legs are detected: above the floor, below what they carry."""
THICKEST = 0.12
"""Largest thickness of a leg, in bounding-box diagonals."""
MOST_LEGS = 6
_REACH, _LEAST = 0.06, 0.05  # largest gap within a leg, in diagonals; least fraction of the slab's points
_LONGER = 1.5  # ratio to the other two extents from which a shape is called tall or wide
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_BY_NAME = "other"
"""The class of shapes that are described by their names only."""
_STANDING = ("chair", "table", "sofa", "bed", "bench", "piano", "chicken")
"""Name parts of shapes whose legs are described."""
_HALVES = 3
"""Random halves of the points that must agree on the number of legs."""


def describe(points: Float[np.ndarray, "N 3"], name: str, category: str) -> list[str]:
    """Captions of a shape, by name and by class: "a tall stool with one leg".

    Args:
        points: y up.
    """
    nouns = [name, category] if category != _BY_NAME else [name]
    shape = proportion(points)
    legs = _sure_legs(points) if any(word in " ".join(nouns).lower() for word in _STANDING) else None
    said = []
    for noun in dict.fromkeys(noun.lower().replace("_", " ") for noun in nouns):
        words = f"{shape} {noun}" if shape and shape not in noun else noun
        many = noun.endswith("s") and not noun.endswith(("us", "ss"))
        article = "" if many else "an " if words[0] in "aeiou" else "a "
        joint = "and" if " with " in noun else "with"
        carried = "" if legs is None else f" {joint} {_NUMBERS[legs]} leg{'s' if legs > 1 else ''}"
        said.append(article + words + carried)
    return said


def proportion(points: Float[np.ndarray, "N 3"]) -> str:
    """ "tall" or "wide", or "" for a shape that is neither."""
    width, height, depth = np.ptp(points, axis=0)
    if height > _LONGER * max(width, depth):
        return "tall"
    return "wide" if max(width, depth) > _LONGER * max(height, min(width, depth)) else ""


def count_legs(points: Float[np.ndarray, "N 3"], on_feet: bool = False) -> int | None:
    """Number of legs of a shape: separate thin pieces just above the floor.

    None if it stands on something else. Of the built-in shapes, only those with legs get a number.

    Args:
        on_feet: count somewhat higher if there are none just above the floor, where noise lifts points of a foot: the
            leg of a stool with a foot plate.
    """
    counts = (_count_in(points, slab) for slab in (SLABS if on_feet else SLABS[:1]))
    return next((count for count in counts if count is not None), None)


def _count_in(points: Float[np.ndarray, "N 3"], between: tuple[float, float]) -> int | None:
    """Number of thin pieces in a range of relative height; None if other things are there."""
    low, height = points[:, 1].min(), np.ptp(points[:, 1])
    share = (points[:, 1] - low) / height if height > 0 else np.zeros(len(points))
    slab = points[(share > between[0]) & (share < between[1])][:, [0, 2]]
    diagonal = float(np.linalg.norm(np.ptp(points, axis=0)))
    if len(slab) < 8 or diagonal == 0:
        return None
    pieces = _pieces(slab / diagonal)
    sizes = np.bincount(pieces)
    kept = np.flatnonzero(sizes >= max(4, _LEAST * len(slab)))
    if not 0 < len(kept) <= MOST_LEGS:
        return None
    thickness = [np.ptp(slab[pieces == piece] / diagonal, axis=0).max() for piece in kept]
    return len(kept) if max(thickness) <= THICKEST else None


def _sure_legs(points: Float[np.ndarray, "N 3"]) -> int | None:
    """Number of legs if it is stable under subsampling of the points."""
    rng = np.random.default_rng(0)
    halves = [rng.choice(points, len(points) // 2, replace=False) for _ in range(_HALVES)]
    counts = {count_legs(some) for some in (points, *halves)}
    return counts.pop() if len(counts) == 1 else None


def _pieces(places: Float[np.ndarray, "N 2"]) -> Int64[np.ndarray, " N"]:
    """The connected component of each position."""
    pairs = KDTree(places).query_pairs(_REACH, output_type="ndarray")
    shape = (len(places), len(places))
    joined = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape)
    return connected_components(joined, directed=False)[1].astype(np.int64)
