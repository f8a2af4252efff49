"""Registers with Hydra the YAML folders of installed packages, and the `${...:}` resolvers of ditmoe's YAML files."""

import hashlib
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, ListConfig, OmegaConf

from ditmoe.config.folders import installed, leave_plugins_here
from ditmoe.outside import check_number, file_name, printable


class InstalledConfigs(SearchPathPlugin):
    """Adds the YAML folders of installed packages to Hydra's search path, after ditmoe's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra."""
        for name, folder in installed().items():
            search_path.append(name, f"file://{folder}")


def first_choice(group: str, *names: str) -> str:
    """The first of these files that exists in a configuration group, including --config-dir; else the last one.

    For train.yaml, where a modality may have a router and a process of its own, and need not.

    Raises:
        ValueError: if no file is named.
    """
    if not names:
        raise ValueError("first_choice must name files of a group, as ${first_choice:router,mine}")
    known = GlobalHydra.instance().config_loader().get_group_options(group)
    return next((name for name in names if name in known), names[-1])


def every_second(depth: Any) -> list[int]:
    """Indices of every second layer, 1, 3, ..., below depth: the layers with experts, or with attention to text.

    Raises:
        ValueError: unless the depth is a positive whole number.
    """
    check_number("model.depth", depth, 1, whole=True)
    return list(range(1, depth, 2))


def run_name(name: Any, *more: Any) -> str:
    """The name of a run as it stands in a configuration's path, before Hydra makes that folder: it lies in its parent.

    Raises:
        ValueError: if it leads out of that folder, or cannot be printed.
    """
    text = ",".join(map(str, (name, *more)))
    parts = text.removesuffix("/").split("/")
    if name is None or isinstance(name, list | dict | ListConfig | DictConfig) or printable(text) != text:
        raise ValueError(f"name must be text that can be printed, got {printable(text)}")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"name must be a folder below runs/<modality>, got {text!r}; set hydra.run.dir=... for another place"
        )
    return text


def sweep_name(words: Any) -> str:
    """The folder name of one run of a sweep, from its arguments: a single path component of limited length.

    If the arguments had to be changed for that, a hash of them is appended.
    """
    name = file_name(words)
    mark = hashlib.sha256(str(words).encode(errors="surrogatepass")).hexdigest()[:8]
    return name if name == str(words) else f"{name}-{mark}"


leave_plugins_here()
Plugins.instance().register(InstalledConfigs)
for resolver in (first_choice, every_second, run_name, sweep_name):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
