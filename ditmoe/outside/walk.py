"""Walks through any number of files below a folder; reads each folder once, and does not stat regular files."""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Parts = tuple[str, ...]
"""The components of a path relative to the top folder."""


@dataclass(frozen=True)
class Entries:
    """The sorted names in a folder.

    Attributes:
        files: regular files, and links to them.
        folders: folders, and links to them.
        special: FIFOs, devices, sockets, broken links.
        linked: those of `folders` that are links.
        fixed: whether there are no links, so that the kinds cannot change unless the folder does.
    """

    files: list[str]
    folders: list[str]
    special: list[str]
    linked: frozenset[str] = frozenset()
    fixed: bool = True


Read = Callable[[Parts, str, os.stat_result], Entries]
"""Reads the entries of a folder, given its components below the top, its path and its stat result."""


def read_entries(path: str) -> Entries:
    """Read the entries of a folder from disk."""
    with os.scandir(path) as found:
        entries = list(found)
    files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    if len(files) == len(entries):
        files.sort()
        return Entries(files, [], [])
    folders: list[str] = []
    special: list[str] = []
    linked: list[str] = []
    fixed = True
    for entry in entries:
        if entry.is_file(follow_symlinks=False):
            continue
        try:
            folded, plain, link = entry.is_dir(), entry.is_file(), entry.is_symlink()
        except OSError:  # a link to itself, or removed meanwhile
            folded, plain, link = False, False, True
        fixed = fixed and not link
        (folders if folded else files if plain else special).append(entry.name)
        if folded and link:
            linked.append(entry.name)
    for names in (files, folders, special):
        names.sort()
    return Entries(files, folders, special, frozenset(linked), fixed)


def _from_disk(parts: Parts, path: str, about: os.stat_result) -> Entries:
    return read_entries(path)


def folders_below(
    top: Path,
    special: bool = False,
    keep: Callable[[list[str]], list[str]] = lambda names: names,
    read: Read = _from_disk,
) -> Iterator[tuple[Parts, list[str]]]:
    """Folders below `top`, `top` included, with the names of their regular files, in the order of the files' paths.

    A folder is yielded several times if the files of its subfolders sort between its own. Links are followed, and each
    real folder is visited once; a folder inside `top` is visited at its real path, not through links.

    Args:
        special: also yield FIFOs, devices, sockets and broken links, to count what cannot be read.
        keep: filters sorted names of files, or of folders.
        read: reads the entries of a folder, by default from disk.
    """
    seen: set[tuple[int, int]] = set()
    own: set[tuple[int, int]] | None = None  # real folders in `top`

    def real(path: str) -> Iterator[tuple[int, int]]:
        below = [path]
        while below:
            yield _identity(os.stat(path := below.pop()))
            found = read_entries(path)
            below += [os.path.join(path, name) for name in found.folders if name not in found.linked]

    def entered(parts: Parts, path: str) -> Iterator[list[str] | tuple[str, bool]]:
        """Lists of file names, and between them folders (name, whether it is a link), in sorted order."""
        about = os.stat(path)
        if _identity(about) in seen:
            return
        seen.add(_identity(about))
        found = read(parts, path, about)
        files = keep(sorted([*found.files, *found.special]) if special and found.special else found.files)
        first = 0
        for name in keep(found.folders) if found.folders else ():
            if (last := bisect_left(files, name, first)) > first:
                yield files[first:last]
            yield name, name in found.linked
            first = last
        if first < len(files):
            yield files[first:]

    # A stack, since recursion would limit the depth to a thousand.
    open_folders: list[tuple[Parts, str, Iterator[list[str] | tuple[str, bool]]]]
    open_folders = [((), os.fspath(top), entered((), os.fspath(top)))]
    while open_folders:
        parts, path, items = open_folders[-1]
        item = next(items, None)
        if item is None:
            open_folders.pop()
        elif isinstance(item, list):
            yield parts, item
        else:
            name, linked = item
            below = (*parts, name), os.path.join(path, name)
            if linked:
                own = set(real(os.fspath(top))) if own is None else own
                if _identity(os.stat(below[1])) in own:
                    continue
            open_folders.append((*below, entered(*below)))


def files_below(
    top: Path, hidden: bool = False, special: bool = False, skip: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """Regular files below a folder, in the order of their paths, see `folders_below`.

    Args:
        hidden: include names that begin with a dot.
        special: see `folders_below`.
        skip: whether to skip a file or folder of this name; called once for each, so that it can count them.
    """

    def keep(names: list[str]) -> list[str]:
        return [name for name in names if (hidden or name[0] != ".") and not skip(name)]

    for parts, names in folders_below(top, special, keep):
        folder = Path(top, *parts)
        for name in names:
            yield folder / name


def _identity(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino
