"""Where YAML files lie: ditmoe's own, and those of packages that a person installed beside it.

A package names a folder of its own, with the same groups (`modality/mine.yaml`), as an entry point:

    [project.entry-points."ditmoe.configs"]
    mine = "mine.configs"

Nothing of the package is imported until one of its files is chosen. Where two folders have a file of one name, ditmoe's
own counts first.
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
"""Of entry points."""


def config_folder() -> Path:
    """ditmoe's own YAML files: beside the package in a checkout, inside it when installed from a wheel."""
    beside, inside = PACKAGE.parent / "configs", PACKAGE / "configs"
    return beside if (beside / "train.yaml").is_file() else inside


def config_folders() -> list[Path]:
    """ditmoe's own, those of installed packages, and --config-dir where Hydra runs a command with one."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else ()
    told = [Path(source.path) for source in sources if source.provider == "command-line"]
    return [config_folder(), *installed().values(), *told]


@cache
def installed() -> dict[str, Path]:
    """Folders that the entry points of installed packages name, by the entry points' names.

    Raises:
        ValueError: naming a package whose folder is not there.
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
    """The folder of a dotted name, however its top package was installed, without importing any of it."""
    top, *inner = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    places = (spec.submodule_search_locations or ()) if spec else ()
    return next((f for place in places if (f := Path(place, *inner)).is_dir()), None)


def leave_plugins_here() -> None:
    """Let Hydra import the plugins that are installed, not what lies in the current folder as `hydra_plugins`.

    A person may stand in a stranger's data set, of which nothing is to run.
    """
    here, found = os.path.realpath("."), ModuleType("hydra_plugins")
    found.__path__ = [os.path.join(p, found.__name__) for p in sys.path if os.path.realpath(p) != here]
    sys.modules.setdefault(found.__name__, found)
