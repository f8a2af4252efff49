"""Paths of a run's checkpoints. Does not import torch, so that a wrong path is reported at once."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ditmoe.outside import is_regular, printable

FOLDER, MANIFEST = "checkpoints", "manifest.json"
STARTERS = Path(__file__).parents[1] / "starters"
"""Small trained models that come with the package, such as `starter/pointcloud`."""

TRIES = 3
"""Times that a run is read whose training drops the checkpoint that is being read."""
T = TypeVar("T")


def place(run: Path, step: int) -> Path:
    """The folder of a run's checkpoint at a step."""
    return run / FOLDER / f"step-{step:07d}"


def starter_of(path: Path) -> str | None:
    """The starter model that a path names, as `starter/<name>` if no such path exists, or as its folder; else None."""
    if path.parent.name == STARTERS.name and path.parent.exists() and path.parent.samefile(STARTERS):
        return path.name
    is_one = len(path.parts) == 2 and path.parts[0] == "starter" and not path.exists()
    return path.name if is_one and is_regular(STARTERS / path.name / MANIFEST) else None


def exists(path: str | Path) -> bool:
    """Whether a run's folder holds a checkpoint, intact or damaged."""
    return bool(_candidates(Path(path)))


def listed(run: Path) -> list[tuple[int, Path]]:
    """Steps and folders of a run's checkpoints, newest first."""
    folders = (run / FOLDER).iterdir() if (run / FOLDER).is_dir() else ()
    found = ((step, folder) for folder in folders if (step := step_of(folder)) is not None)
    return sorted(found, reverse=True)


def step_of(folder: Path) -> int | None:
    """The step that a checkpoint folder's name states; None unless it is spelled exactly as `place` spells it."""
    match = re.fullmatch(r"step-(\d{7,18})", folder.name, re.ASCII)
    return int(match[1]) if match and folder.name == place(folder, int(match[1])).name else None


def candidates(path: Path) -> list[Path]:
    """The checkpoints of a run's folder, newest first, or the one that `path` itself is.

    Raises:
        FileNotFoundError: one line, if there is none.
    """
    if found := _candidates(path):
        return found
    state = "is not one" if path.exists() else "does not exist"
    where = f"folder {path} holds none" if path.is_dir() else f"{path} {state}"
    if path.parts[:1] == ("starter",) and not path.exists():
        own = sorted(f"starter/{each.name}" for each in STARTERS.glob("*") if is_regular(each / MANIFEST))
        where = f"{path} is not one of those that come with ditmoe: {', '.join(own)}"
    raise FileNotFoundError(f"checkpoint must be a run's folder or a checkpoint in it, but {where}")


def unless_dropped(path: Path, work: Callable[[], T]) -> T:
    """What `work` makes of the newest checkpoint of a run; begun again, up to `TRIES` times, if one was dropped.

    A checkpoint that `path` itself is has no other in its place.

    Raises:
        FileNotFoundError: if there is none; whatever `work` raises.
    """
    for left in reversed(range(TRIES)):
        before = candidates(path)
        try:
            return work()
        except (ValueError, OSError):
            if not left or all(map(os.path.lexists, before)):
                raise
    raise AssertionError


def check_within(found: Path, path: Path) -> None:
    """Raises ValueError if a checkpoint of a run's folder, or their folder, is a link elsewhere: nobody named that.

    Args:
        found: one of `candidates(path)`.
    """
    named = found.parent.name != FOLDER or found in (path, path.parent)
    if not named and not Path(os.path.realpath(found)).is_relative_to(os.path.realpath(path)):
        raise ValueError(
            f"{printable(found)} leads out of {printable(path)}, refused: it is a link, or lies in one; name the "
            "folder it leads to"
        )


def _candidates(path: Path) -> list[Path]:
    if name := starter_of(path):
        path = STARTERS / name
    if path.name == FOLDER and not (path / FOLDER).exists():
        path = path.parent
    if path.name == MANIFEST:
        path = path.parent
    return [path] if is_regular(path / MANIFEST) else [folder for _, folder in listed(path)]
