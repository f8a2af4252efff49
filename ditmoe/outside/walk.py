"""The files below a folder, at any number: each folder is read once, and nothing is asked of a plain file."""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Parts = tuple[str, ...]
"""A path below another, by its folders."""


@dataclass(frozen=True)
class Entries:
    """What a folder holds, by name and sorted.

    Attributes:
        files: plain ones, of which links to such are a part.
        folders: links to folders are a part.
        special: FIFOs, devices, sockets, links that lead nowhere.
        linked: which of the folders are links.
        fixed: no link among them, so that they stay what they are until the folder changes.
    """

    files: list[str]
    folders: list[str]
    special: list[str]
    linked: frozenset[str] = frozenset()
    fixed: bool = True


Read = Callable[[Parts, str, os.stat_result], Entries]
"""What a folder holds, of its path below the top, its own path, and what the system says of it."""


def read_entries(path: str) -> Entries:
    """What a folder holds, read from the disk."""
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
        except OSError:  # a link to itself, or gone meanwhile
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
    """Folders below one, with names of their plain files, in the order of the files' paths.

    A folder whose files come before and behind those of a folder in it is given several times. Links are followed, each
    real folder once; one that lies in `top` is where it lies, whatever links lead to it.

    Args:
        special: also FIFOs, devices, sockets and links that lead nowhere, for who counts what cannot be read.
        keep: which of sorted names of files, or of folders, are not passed over.
        read: gives what a folder holds, by default from the disk.
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
        """Names of files, and between them folders, and whether each is a link."""
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

    # of any depth, where calls end at a thousand
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
    """Plain files below a folder, in order of their paths, as `folders_below` finds them.

    Args:
        hidden: also what begins with a dot.
        special: see `folders_below`.
        skip: whether a file or folder of this name is passed over; asked once for each, so that it may count them.
    """

    def keep(names: list[str]) -> list[str]:
        return [name for name in names if (hidden or name[0] != ".") and not skip(name)]

    for parts, names in folders_below(top, special, keep):
        folder = Path(top, *parts)
        for name in names:
            yield folder / name


def _identity(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino
