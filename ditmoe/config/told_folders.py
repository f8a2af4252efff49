"""YAML files of a folder that the command line names (`--config-dir`), checked before Hydra reads them.

The person trusts the classes of that folder, not what its YAML might do without them: change Hydra itself, call what is
no part of a model, or stand for more than it shows.
"""

import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse

from ditmoe.config import interpolations, yaml_files
from ditmoe.config.folders import GROUP
from ditmoe.config.known_classes import find
from ditmoe.outside import files_below, printable

_OPTIONS = ("--config-dir", "-cd", "--config-path", "-cp")
_PARTS = (
    "torch.optim.optimizer.Optimizer",
    "torch.nn.modules.module.Module",
    "diffusers.configuration_utils.ConfigMixin",
)
"""Bases of classes of installed packages that may be made, beside ditmoe's own."""
OURS = ("ditmoe", "modalities")
_MAKING = re.compile(r"\$\{\s*oc\.(create|decode)\b")
"""Resolvers that make what no check of a file sees."""


def check_told(arguments: Sequence[str]) -> None:
    """Check the YAML files of the folders that a command line names.

    Raises:
        OSError, ValueError: one line, for the first that is refused.
    """
    for word, following in pairwise([*arguments, ""]):
        name, equals, value = word.partition("=")
        short = name.startswith("--config-") and any(option.startswith(name) for option in _OPTIONS)
        if name in _OPTIONS or short:  # argparse takes the beginning of a long option, too
            check_folder(Path(value if equals else following))


def check_folder(folder: Path) -> None:
    """Check all YAML files of a folder, links to folders followed as Hydra does; errors as of `check_told`."""
    contents, moved = [], False
    files = files_below(folder, hidden=True, special=True) if folder.is_dir() else ()
    for file in [file for file in files if file.suffix == ".yaml"]:
        text, content = yaml_files.check(file).decode(), yaml_files.read(file)
        try:
            _check_hydra(text, content)
            for name, value in _texts(content):
                if "${" in value:
                    parse(value)
                if _MAKING.search(value):
                    raise ValueError(f"it must say its values itself, got {value[:80]}")
                if name == "_target_":
                    _check_class(value)
        except (GrammarParseError, ValueError) as error:
            reason = (
                "it has an interpolation that is not whole" if isinstance(error, GrammarParseError) else error
            )
            raise ValueError(f"{printable(file)} is no YAML that is read: {printable(reason)}") from error
        section = _package(file.relative_to(folder), text)
        moved = moved or _moves(content, section, section == file.relative_to(folder).parent.parts)
        contents.append((section, content))
    try:
        interpolations.check(contents, moved, yaml_files.MOST)
    except ValueError as error:
        raise ValueError(f"the YAML of {printable(folder)} is not read: {printable(error)}") from error


def _package(file: Path, text: str) -> tuple[str, ...]:
    """The section that Hydra puts a file into: that of its header, else its group."""
    group = ".".join(file.parent.parts)
    told = next(
        (found[1] for line in text.splitlines() if (found := re.search(r"#\s*@package\s+(\S+)", line))), group
    )
    told = told.replace("_group_", group)
    return tuple(part for part in told.split(".") if part not in ("", "_global_"))


def _moves(content: Any, section: tuple[str, ...], by_group: bool) -> bool:
    """Whether the defaults of a file put others into sections other than theirs.

    Sections of defaults are relative to the file's own; `group@section: file` names one.

    Args:
        by_group: whether the file's own section is its group.
    """
    for name in _defaults(content):
        name = name.removeprefix("optional ")
        absolute = name.startswith("/")
        kept = (absolute and not section) or (not absolute and by_group)
        if "@" in name or not (kept or name == "_self_" or name.startswith("override ")):
            return True
    return False


def _defaults(content: Any) -> list[str]:
    """What a defaults list names: groups, and files of the same group."""
    chosen = content.get("defaults", []) if isinstance(content, dict) else []
    found = []
    for each in chosen if isinstance(chosen, list) else [chosen]:
        if not isinstance(each, dict | str):
            raise ValueError(f"its defaults must be names of files, got {each}")
        found += [str(name) for name in each] if isinstance(each, dict) else [each]
    return found


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All texts, with the key that each stands under."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else ((name, inner) for inner in value):
            yield from _texts(inner, str(key))
    elif isinstance(value, str):
        yield name, value


def _check_hydra(text: str, content: Any) -> None:
    """Raise ValueError for what changes Hydra, as the folder of a run or what it calls: only the command line may."""
    names = [*map(str, content if isinstance(content, dict) else ()), *_defaults(content)]
    for line in text.splitlines():  # as Hydra divides them
        names += re.findall(r"#\s*@package(.*)", line)
    if any(re.search(r"(?<![\w-])hydra\b", name) for name in names):
        raise ValueError("it must not set hydra: say hydra.run.dir=... and the like on the command line")


def _check_class(target: str) -> None:
    """Raise ValueError for a class that is neither the person's own nor a part of a model.

    The person's own are those of the current folder, and of packages that name YAML files (`ditmoe.configs`). What
    counts is where a class was written, not the name that leads to it: `mine.subprocess.Popen`.
    """
    if "${" in target:
        raise ValueError(f"_target_ must be written out, got {target}")
    top = target.partition(".")[0]
    try:
        found = None if top in sys.stdlib_module_names else find(target)
    except ValueError:  # told where it is to be made, if it is
        return
    bases = found.__mro__ if inspect.isclass(found) else ()
    home = found.__module__.partition(".")[0] if bases else top
    own = home not in OURS and home not in sys.stdlib_module_names and not _is_installed(home)
    if not own and not any(
        f"{base.__module__}.{base.__qualname__}" in _PARTS or _is_ours(base) for base in bases
    ):
        raise ValueError(
            "_target_ must be a class of yours or of ditmoe, or of another package an optimiser of torch, a scheduler "
            f"of diffusers, a module of torch or what has a base of ditmoe, got {target}"
        )


def _is_ours(base: type) -> bool:
    return base.__module__.partition(".")[0] in OURS


def _is_installed(top: str) -> bool:
    """Whether a package was installed, and not as one that brings YAML files."""
    if any(point.value.partition(".")[0] == top for point in entry_points(group=GROUP)):
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec else []
    installed = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    return any(Path(place).is_relative_to(folder) for place in places for folder in installed)
