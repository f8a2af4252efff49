"""Classes and splits of files with many shapes each, as ModelNet40's HDF5 (`ply_data_train0.h5`)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ditmoe.outside import decoded, file_name, is_regular, open_regular, printable, read_beside, tell
from modalities.pointcloud.data import scans
from modalities.shared.layout import split_within

NAMES = "shape_names.txt"
"""File beside the data or in the parent folder, with one class name per line."""
LARGEST_NAMES = 2**20
SUFFIXES = (".h5", ".hdf5")


def classes_within(path: Path, count: int) -> list[str] | None:
    """The class of each of the `count` shapes in a file; None without readable labels."""
    if path.suffix.lower() not in SUFFIXES:
        return None
    try:
        scans.check_library(path.suffix.lower())
        with open_regular(path) as stream:
            labels = scans.read_labels(stream)
    except Exception as error:  # h5py raises many
        tell(f"{printable(path)}: its labels are left out: {' '.join(str(error).split())[:160]}")
        return None
    if labels is None:
        return None
    if len(labels) != count:
        tell(f"{printable(path)}: its {len(labels)} labels are left out, as it holds {count} shapes")
        return None
    if len(labels) and (least := int(labels.min())) < 0:
        tell(f"{printable(path)}: its labels are left out: they must be whole numbers from 0, got {least}")
        return None
    names = _names(path)
    return [names[i] if 0 <= i < len(names) else f"class-{i:02d}" for i in labels.tolist()]


def _names(path: Path) -> Sequence[str]:
    file = next((file for up in path.parents[:2] if is_regular(file := up / NAMES)), None)
    text = decoded(read_beside(file, LARGEST_NAMES), "replace") if file else ""
    names = [file_name(line.strip()) for line in text.splitlines() if line.strip()]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"{printable(file)} must name each class once, got {printable(twice[0])} more than once"
        )
    return names


def splits_by_name(paths: Iterable[Path]) -> dict[Path, str]:
    """The split by the name of each file; empty unless all names have one and they are not all the same."""
    found = {path: said[0] if (said := split_within(path.stem)) else "" for path in paths}
    return found if len(set(found.values())) > 1 and all(found.values()) else {}
