"""Folders of YAML files: ditmoe's own, and those of installed packages.

A package declares its folder, with the same groups (`modality/mine.yaml`), as an entry point:

    [project.entry-points."ditmoe.configs"]
    mine = "mine.configs"

The package is not imported until one of its files is chosen. If two folders have a file of the same name, ditmoe's own
takes precedence.
"""

import importlib.util
import os
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from hydra.core.hydra_config import HydraConfig

from ditmoe.outside import printable

PACKAGE = Path(__file__).parents[1]
GROUP = "ditmoe.configs"
"""Group of the entry points."""


def config_folder() -> Path:
    """The folder of ditmoe's YAML files: beside the package in a checkout, inside it when installed from a wheel."""
    beside, inside = PACKAGE.parent / "configs", PACKAGE / "configs"
    return beside if (beside / "train.yaml").is_file() else inside


def config_folders() -> list[Path]:
    """ditmoe's own folder, those of installed packages, and --config-dir if the running command has one."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else ()
    told = [Path(source.path) for source in sources if source.provider == "command-line"]
    return [config_folder(), *installed().values(), *told]


@cache
def installed() -> dict[str, Path]:
    """Folders of installed packages, by the names of their entry points.

    Raises:
        ValueError: naming a package whose folder does not exist.
    """
    found: dict[str, Path] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        if (folder := _folder_of(point.value)) is None:
            of = f" of {point.dist.name}" if point.dist else ""
            raise ValueError(
                f"the entry point {printable(point.name)}{of} in {GROUP} must name a package folder of YAML files, "
                f"got {printable(point.value)!r}"
            )
        found.setdefault(point.name, folder)
    return found


def _folder_of(package: str) -> Path | None:
    """The folder of a dotted package name, found without importing the package; None if there is none."""
    top, *inner = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    places = (spec.submodule_search_locations or ()) if spec else ()
    return next((f for place in places if (f := Path(place, *inner)).is_dir()), None)


def leave_plugins_here() -> None:
    """Keep Hydra from importing `hydra_plugins` from the current folder; installed plugins are still found.

    The current folder may be an untrusted data set, whose code must not run.
    """
    here, found = _real_path("."), ModuleType("hydra_plugins")
    found.__path__ = [os.path.join(p, found.__name__) for p in sys.path if _real_path(p) != here]
    sys.modules.setdefault(found.__name__, found)


def _real_path(path: str) -> str | None:
    """A path without links; None for a relative one if the current folder was removed, which `guard` reports."""
    try:
        return os.path.realpath(path)
    except FileNotFoundError:
        return None
