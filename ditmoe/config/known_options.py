"""The options of a command, from its YAML files, and suggestions for misspelt ones."""

import difflib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ditmoe.config.folders import config_folders

PLACES = {"codec": "modality.codec", "tokens": "modality.tokens", "encoder": "conditioning.encoder"}
"""Sections of groups whose section is not named like the group."""


def unknown_option(key: str, command: str | None = None) -> str:
    """One line for an option that a command does not have, with a suggestion.

    Args:
        command: the name of its YAML file; None means any.
    """
    known = sorted(known_options(command).keys() - {key})  # it may exist, such as for another router
    last = key.rpartition(".")[2]
    within = [name for name in known if "." in name and name.rpartition(".")[2] == last]
    others = [] if within and "." not in key else commands_with(key)  # `steps` probably means `trainer.steps`
    if others and command not in others:
        return f"{key} is not an option of this command, but of {', '.join(others)}"
    return f"{key} is not an option; {suggest(key, known)}"


def suggest(word: str, known: Sequence[str]) -> str:
    """The most similar of the known words, as a question; else all top-level ones."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near:  # the most common mistake is a correct name in the wrong section
        same = [name for name in known if name.rpartition(".")[2] == word.rpartition(".")[2]]
        near = sorted(same, key=lambda name: (name.count("."), len(name)))[:1]
    return (
        f"did you mean {near[0]}?" if near else f"choose from {', '.join(k for k in known if '.' not in k)}"
    )


def commands_with(key: str) -> list[str]:
    """The commands whose own YAML file names an option."""

    def names(node: Any, parts: list[str]) -> bool:
        return not parts or (isinstance(node, dict) and parts[0] in node and names(node[parts[0]], parts[1:]))

    files = [file for folder in config_folders() for file in sorted(folder.glob("*.yaml"))]
    return [file.stem for file in files if names(_content(file), key.split("."))]


def known_options(command: str | None = None) -> dict[str, list[Any]]:
    """Dotted names of the options of a command, and their values in its YAML files, which are not composed.

    A group contributes the options of all its files, since each choice has its own. Files for other sections
    (`@package _global_`, experiments) contribute only the sections that the command has.

    Args:
        command: the name of its YAML file; None means any.
    """
    found: dict[str, list[Any]] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            name = f"{prefix}.{key}" if prefix else str(key)
            if key not in ("defaults", "hydra") and not str(key).startswith("_"):
                found.setdefault(name, []).append(value)
                walk(value, name)

    own = [file for folder in config_folders() for file in folder.glob(f"{command or '*'}.yaml")]
    groups = _groups(own)
    found |= {group: [] for group in groups if group not in PLACES}
    for file in own:
        walk(_content(file), "")
    sections = {name.partition(".")[0] for name in found}
    for group, files in groups.items():
        for file in files:
            content = _content(file)
            if not file.read_text().startswith("# @package _global_"):
                walk(content, PLACES.get(group, group))
            else:
                walk({key: value for key, value in content.items() if key in sections}, "")
    return found


def _groups(files: Collection[Path]) -> dict[str, list[Path]]:
    """The groups in the defaults lists of files, recursively, each with its files."""
    found: dict[str, list[Path]] = {}
    waiting = [group for file in files for group in _chosen(_content(file))]
    while waiting:
        if (group := waiting.pop()) not in found:
            found[group] = [f for folder in config_folders() for f in sorted((folder / group).glob("*.yaml"))]
            waiting += [each for file in found[group] for each in _chosen(_content(file))]
    return found


def _chosen(content: Any) -> Iterator[str]:
    """Groups that a file's defaults list adds (`modality: image`, `/codec@codec: identity`), without overrides."""
    for each in content.get("defaults", []):
        for name in each if isinstance(each, dict) else ():
            if not str(name).startswith("override "):
                yield str(name).removeprefix("optional ").removeprefix("/").partition("@")[0]


def _content(file: Path) -> Any:
    content = OmegaConf.to_container(OmegaConf.load(file))
    return content if isinstance(content, dict) else {}
