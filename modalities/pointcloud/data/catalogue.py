"""Lists the shapes of a data set: class names, and the points or files of each split."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ditmoe.outside import Entries, Parts, printable
from modalities.pointcloud.data.pieces import OWN, absent
from modalities.shared.datasets import SPLITS
from modalities.shared.folder_index import FolderIndex
from modalities.shared.layout import split_word
from modalities.shared.understood import BESIDE, KIND, OUTSIDE, Ignored

BUILT_IN = Path(__file__).parents[1] / "assets" / "furniture.npz"
CC0 = "CC0 1.0"
"""The licence of built-in shapes in the public domain."""

Splits = dict[str, list[tuple[str, Path | np.ndarray]]]
"""Split -> names of the shapes with their points or files."""

_TABLE = """
02691156 airplane    02747177 can         02773838 bag         02801938 basket      02808440 bathtub
02818832 bed         02828884 bench       02843684 birdhouse   02871439 bookshelf   02876657 bottle
02880940 bowl        02924116 bus         02933112 cabinet     02942699 camera      02946921 tin_can
02954340 cap         02958343 car         02992529 cellphone   03001627 chair       03046257 clock
03085013 keyboard    03207941 dishwasher  03211117 monitor     03261776 earphone    03325088 faucet
03337140 file        03467517 guitar      03513137 helmet      03593526 jar         03624134 knife
03636649 lamp        03642806 laptop      03691459 speaker     03710193 mailbox     03759954 microphone
03761084 microwave   03790512 motorcycle  03797390 mug         03928116 piano       03938244 pillow
03948459 pistol      03991062 pot         04004475 printer     04074963 remote_control  04090263 rifle
04099429 rocket      04225987 skateboard  04256520 sofa        04330267 stove       04379243 table
04401088 telephone   04460130 tower       04468005 train       04530566 vessel      04554684 washer
"""

SYNSETS = MappingProxyType(dict(zip(_TABLE.split()[::2], _TABLE.split()[1::2], strict=True)))
"""The 55 synsets of ShapeNetCore.v2: id -> the name PointFlow gave it."""


@dataclass(frozen=True, eq=False)
class Shape:
    """One shape of a split: its name, its class index, and its points or the file that has them."""

    name: str
    label: int
    source: Path | np.ndarray


def list_shapes(
    root: Path | None,
    wanted: Sequence[str | int] | None,
    ignored: Ignored | None = None,
    index: Path | None = None,
    cc0: bool = False,
) -> tuple[list[str], dict[str, list[Shape]]]:
    """List a data set: class names, and for each split its shapes by class and name.

    `root` is a folder laid out as `<class>/{train,val,test}/*.npy` (splits in any usual spelling) or None for the
    built-in set, or with `cc0` its shapes in the public domain; `wanted` has names or synset ids, None for all. What
    is left out is counted in `ignored`; names are cached for the next start in the folder `index`. ValueError if the
    layout or a class is missing.
    """
    ignored = Ignored() if ignored is None else ignored
    if root is None:
        known = _built_in(cc0)
        classes = _choose(wanted, sorted(known), "the built-in set")
        entries = [known[name] for name in classes]
    else:
        folders = _Folders(root, index)
        there = _class_folders(folders, ignored)
        classes = _choose(wanted, sorted(there), printable(root))
        left_out = set(absent(root))
        entries = [_files(folders, there[name], ignored, left_out) for name in classes]
        folders.index.save()
    shapes: dict[str, list[Shape]] = {split: [] for split in SPLITS}
    for label, (name, splits) in enumerate(zip(classes, entries, strict=True)):
        for split in SPLITS:
            shapes[split] += [
                Shape(f"{name}/{printable(stem)}", label, source) for stem, source in splits[split]
            ]
    return classes, shapes


def class_name(given: str | int) -> str:
    """The name of a class given as a name or as a synset id.

    YAML 1.1 reads an unquoted 03001627 as an octal number and drops the leading zero of others: integers are
    converted back to the id as written.
    """
    if isinstance(given, int):
        return next((SYNSETS[i] for i in (f"{given:08o}", f"{given:08d}") if i in SYNSETS), str(given))
    return SYNSETS.get(given, given)


def _built_in(cc0: bool) -> dict[str, Splits]:
    """Class -> split -> (name, points). The file stores points in the order of a curve, so each cloud is shuffled."""
    with np.load(BUILT_IN) as file:
        steps, *columns = (file[key] for key in ("steps", "category", "split", "name", "licence"))
    clouds = np.moveaxis(np.cumsum(steps, axis=2, dtype=np.float32) / 2048, 0, 2)
    tree: dict[str, Splits] = {}
    for i, (cloud, category, split, name, licence) in enumerate(zip(clouds, *columns, strict=True)):
        if cc0 and licence != CC0:
            continue
        shape = f"{i:03d}-{name}", np.random.default_rng(i).permutation(cloud)
        tree.setdefault(str(category), {s: [] for s in SPLITS})[str(split)].append(shape)
    return tree


class _Folders:
    """The contents of a data set's folders, each read once."""

    def __init__(self, root: Path, index: Path | None) -> None:
        self.root, self.index = root, FolderIndex(index, root)
        self._read: dict[Parts, Entries] = {}

    def __getitem__(self, parts: Parts) -> Entries:
        if parts not in self._read:
            path = os.path.join(self.root, *parts)
            self._read[parts] = self.index.read(parts, path, os.stat(path))
        return self._read[parts]

    def names(self, parts: Parts) -> list[str]:
        """Names of files and folders."""
        found = self[parts]
        return sorted([*found.files, *found.folders, *found.special])


def _class_folders(folders: _Folders, ignored: Ignored) -> dict[str, str]:
    """Class name -> folder name, for folders that contain a split."""
    root = folders.root
    layout = (
        f"{printable(root)} (data.root) must be a folder laid out as <class>/{{{','.join(SPLITS)}}}/*.npy"
    )
    if not root.is_dir():
        raise ValueError(f"{layout}, got {'a file' if root.exists() else 'nothing there'}")
    found: dict[str, str] = {}
    for name in folders.names(()):
        is_folder = name in folders[()].folders
        has_splits = is_folder and any(map(split_word, folders[(name,)].folders))
        if (name in OWN and not has_splits) or ignored.is_hidden(name):
            continue
        if not is_folder:
            ignored.add(BESIDE, name)
        elif has_splits:
            category = printable(class_name(name))
            if category in found:
                both = printable(f"{found[category]} and {name}")
                raise ValueError(
                    f"{printable(root)} must have one folder for the class {category}, got {both}"
                )
            found[category] = name
        else:
            ignored.add("folders without splits", name, by_name=True)
    if not found:
        raise ValueError(f"{layout}, got no such folder in it (`ditmoe.prepare` writes them)")
    return found


def _files(folders: _Folders, category: str, ignored: Ignored, left_out: set[str]) -> Splits:
    """Split -> (name, file) of one class, sorted by name."""
    files: Splits = {split: [] for split in SPLITS}
    for name in folders.names((category,)):
        if ignored.is_hidden(name):
            continue
        is_folder = name in folders[(category,)].folders
        if not (split := split_word(name)) or not is_folder:
            ignored.add(OUTSIDE, name, by_name=is_folder)
            continue
        place = folders.root / category / name
        for file in folders.names((category, name)):
            if f"{category}/{name}/{file}" in left_out:
                continue
            if file.endswith(".npy") and not file.startswith("."):
                files[split].append((file.removesuffix(".npy"), place / file))
            elif not ignored.is_hidden(file):
                ignored.add(KIND, file)
    return files


def _choose(wanted: Sequence[str | int] | None, known: list[str], place: str) -> list[str]:
    if wanted is None:
        return known
    names = [class_name(given) for given in wanted]
    for given, name in zip(wanted, names, strict=True):
        if name not in known:
            near = get_close_matches(name, known, n=3) or known
            raise ValueError(f"classes must be in {place}, got {given!r}; the nearest are {', '.join(near)}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"classes must name one or more, each once, got {list(wanted)}")
    return names
