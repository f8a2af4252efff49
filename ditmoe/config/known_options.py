"""Which options a command has, as its YAML files name them, and which one a misspelt word may have been."""

import difflib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ditmoe.config.folders import config_folders

PLACES = {"codec": "modality.codec", "tokens": "modality.tokens", "encoder": "conditioning.encoder"}
"""Sections in which groups stand, but for those that stand in one of their own name."""


def unknown_option(key: str, command: str | None = None) -> str:
    """One line for an option that a command does not have; what is suggested it has.

    Args:
        command: by the name of its YAML; None: any.
    """
    known = sorted(known_options(command).keys() - {key})  # it may be one elsewhere, as of another router
    last = key.rpartition(".")[2]
    within = [name for name in known if "." in name and name.rpartition(".")[2] == last]
    others = [] if within and "." not in key else commands_with(key)  # `steps` was meant as `trainer.steps`
    if others and command not in others:
        return f"{key} is not an option here, but of {', '.join(others)}"
    return f"{key} is not an option; {suggest(key, known)}"


def suggest(word: str, known: Sequence[str]) -> str:
    """What was probably meant by a word, among those that would be right."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near:  # a right name in the wrong section is the commonest mistake
        same = [name for name in known if name.rpartition(".")[2] == word.rpartition(".")[2]]
        near = sorted(same, key=lambda name: (name.count("."), len(name)))[:1]
    return (
        f"did you mean {near[0]}?" if near else f"choose from {', '.join(k for k in known if '.' not in k)}"
    )


def commands_with(key: str) -> list[str]:
    """The commands whose own file names an option: of another command it is none."""

    def names(node: Any, parts: list[str]) -> bool:
        return not parts or (isinstance(node, dict) and parts[0] in node and names(node[parts[0]], parts[1:]))

    files = [file for folder in config_folders() for file in sorted(folder.glob("*.yaml"))]
    return [file.stem for file in files if names(_content(file), key.split("."))]


def known_options(command: str | None = None) -> dict[str, list[Any]]:
    """Dotted names of the options of a command, and what files say for them; the files are not composed.

    Of a group are those of all its files: another choice has other options. Files that change other sections
    (`@package _global_`, experiments) name those alone that the command has.

    Args:
        command: by the name of its YAML; None: any.
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
    """The groups among which the defaults of files choose, and those of these in turn, each with its files."""
    found: dict[str, list[Path]] = {}
    waiting = [group for file in files for group in _chosen(_content(file))]
    while waiting:
        if (group := waiting.pop()) not in found:
            found[group] = [f for folder in config_folders() for f in sorted((folder / group).glob("*.yaml"))]
            waiting += [each for file in found[group] for each in _chosen(_content(file))]
    return found


def _chosen(content: Any) -> Iterator[str]:
    """Groups that the defaults of a file add: `modality: image`, `/codec@codec: identity`; another choice is none."""
    for each in content.get("defaults", []):
        for name in each if isinstance(each, dict) else ():
            if not str(name).startswith("override "):
                yield str(name).removeprefix("optional ").removeprefix("/").partition("@")[0]


def _content(file: Path) -> Any:
    content = OmegaConf.to_container(OmegaConf.load(file))
    return content if isinstance(content, dict) else {}
