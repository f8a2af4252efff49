"""Where laws find their subjects: every YAML of a group in ditmoe's folder, the examples', the tests' packages', and in
any folder that a test names."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ditmoe.config import cli

ROOT = Path(__file__).resolve().parents[1]
OWN = cli.config_folder()
FOLDERS = (OWN, *sorted(ROOT.glob("examples/*/configs")), *sorted(ROOT.glob("tests/strangers/*/configs")))


def find(group: str, *folders: Path) -> dict[str, Path]:
    """Name -> folder of each YAML of a group; without those that only choose among the others (`for_`, `_`).

    The modules beside a folder that is not ditmoe's own become importable, as a person's package is: the folder may lie
    in a package or beside its modules.
    """
    found: dict[str, Path] = {}
    for folder in folders or FOLDERS:
        names = sorted(
            f.stem for f in (folder / group).glob("*.yaml") if not f.stem.startswith(("for_", "_"))
        )
        found |= {name: folder for name in names if name not in found}
        if folder != OWN:
            sys.path += [p for p in map(str, (folder.parent, folder.parents[1])) if p not in sys.path]
    return found


@cache
def section(group: str, name: str, folder: Path = OWN) -> Any:
    """A YAML by itself, with its defaults, which may be ditmoe's."""
    with initialize_config_dir(str(folder), version_base="1.3"):
        composed = compose(f"{group}/{name}", overrides=[f"hydra.searchpath=[file://{OWN}]"])
    return OmegaConf.to_container(composed, resolve=True)[group]  # type: ignore[index, call-overload]


@cache
def composed(command: str, *overrides: str, folder: Path = OWN) -> dict[str, Any]:
    """The configuration of a command, with the groups of another folder beside ditmoe's; not to be changed."""
    with initialize_config_dir(str(OWN), version_base="1.3"):
        config = compose(command, overrides=[*overrides, *beside(folder)])
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def beside(folder: Path) -> list[str]:
    """The word of a command line by which it finds the groups of another folder, too."""
    return [] if folder == OWN else [f"hydra.searchpath=[file://{folder}]"]
