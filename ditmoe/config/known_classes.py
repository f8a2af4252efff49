"""The classes that an untrusted configuration may name, and how names are resolved.

Allowed are the classes in YAML files of ditmoe, of installed packages, and of the folder given by --config-dir
(`ditmoe.config.folders`), as well as schedulers of diffusers and optimisers of torch.
"""

import importlib
import inspect
import pkgutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ditmoe.config import yaml_files
from ditmoe.config.folders import config_folders
from ditmoe.config.nested import last_part, strings
from ditmoe.outside import printable


def is_allowed(target: Any, place: str | None) -> bool:
    """Whether an untrusted configuration may name this target.

    Args:
        place: the dotted path of its section, such as `modality.tokens`. A YAML file must name the target in a section
            whose last name is the same. None: the user trusts the configuration, and any class is allowed, but no
            function.
    """
    if type(target) is not str:
        return False
    package, _, name = target.rpartition(".")
    listed = place is None or target in classes(place)
    of_others = (place == "scheduler" and package == "diffusers" and name.endswith("Scheduler")) or (
        place == "optimizer" and package == "torch.optim"
    )
    if not listed and not of_others:
        return False
    try:
        found = find(target)
    except ValueError:
        return False
    return inspect.isclass(found) and (listed or _is_scheduler(found) or _is_optimizer(found))


def _is_scheduler(found: type) -> bool:
    return {"SchedulerMixin", "ConfigMixin"} <= {base.__name__ for base in found.__mro__}


def _is_optimizer(found: type) -> bool:
    return any(base.__module__ == "torch.optim.optimizer" for base in found.__mro__)


def shipped() -> tuple[Mapping[str, frozenset[str]], frozenset[tuple[str, str]]]:
    """Targets in the YAML files, by the last name of their section; and all other strings, as (option, text) pairs.

    The files are those of ditmoe, of installed packages, and of the folder given by --config-dir.
    """
    return _named_in(tuple(config_folders()))


@cache
def _named_in(folders: Sequence[Path]) -> tuple[Mapping[str, frozenset[str]], frozenset[tuple[str, str]]]:
    targets, words = defaultdict(set), set()
    files = [(folder, file) for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    for folder, file in files:
        group = file.parent.relative_to(folder).as_posix()
        top = "" if group in (".", "experiment", "recipe") else group
        for place, text in strings(yaml_files.read(file), top):
            if last_part(place) == "_target_":
                targets[last_part(place.removesuffix("._target_"))].add(text)
            else:
                words.add((last_part(place), text))
    return {place: frozenset(names) for place, names in targets.items()}, frozenset(words)


def classes(place: str) -> frozenset[str]:
    """Targets that an untrusted configuration may name in a section: those in YAML sections with the same last name."""
    return shipped()[0].get(last_part(place), frozenset())


def find(target: Any) -> Any:
    """The object of a dotted name.

    Raises:
        ValueError: if there is none.
    """
    try:
        return pkgutil.resolve_name(target)
    except Exception as error:
        why = _why_not(target) if isinstance(error, ImportError | AttributeError) else ""
        raise ValueError(f"{printable(target)} cannot be found: {why or error}") from error


def _why_not(target: str) -> str:
    """The error of an import inside the module of a dotted name, if that is why the name was not found; else ""."""
    parts = target.split(".")
    for end in range(1, len(parts)):
        module = ".".join(parts[:end])
        try:
            importlib.import_module(module)
        except ImportError as error:
            return "" if error.name == module else str(error)
    return ""
