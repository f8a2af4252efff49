"""Every key and section of every composed configuration, set to what it is not.

`python -m tests.command_keys` runs them: each ends in success, or in one line with the key's name, or that of a
section that holds it, and no word of Python's own. Of training all is composed and made, but nothing trained. Each run
is a process of its own, forked when everything is loaded; there are thousands, of a second or two: --share, --only.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ditmoe import train
from ditmoe.config import cli
from tests.command_numbers import Command, End, main

VALUES = ("-1", "x", "[]", "{}", "null", "nan", "1e30")
PYTHON = re.compile(
    r"\b(?:[A-Z]\w*Error|NoneType|Traceback|list index|unhashable|subscriptable|not iterable|positional argument|"
    r"object has no|not supported between|unsupported operand|must be real number|unexpected keyword)\b"
    r"|'(?:int|str|list|dict|float)'"
)
"""What Python says in words of its own."""
OURS = ("hydra", "words")
"""Sections that are Hydra's, or have no keys of their own."""


def keys(command: Command) -> list[str]:
    """Names of all keys and sections of a command's composed configuration."""
    with initialize_config_dir(str(cli.config_folder()), version_base="1.3"):
        config = compose(command.config, overrides=list(command.words))
    found: list[str] = []

    def walk(node: Any, name: str) -> None:
        for key, inner in node.items():
            below = f"{name}.{key}".lstrip(".")
            found.append(below)
            if isinstance(inner, dict):
                walk(inner, below)

    walk(OmegaConf.to_container(config, resolve=False), "")
    return [name for name in found if name.split(".")[0] not in OURS]


def cases(command: Command) -> Iterator[str]:
    """Each key with each value."""
    return (f"{name}={value}" for name in keys(command) for value in VALUES)


def vague(name: str, text: str) -> str:
    """What is wrong with the one line of a refusal, "" for nothing: it must name the key or a section above it."""
    line = next((line for line in text.splitlines() if "error: " in line), "")
    named = [
        part for part in name.split(".") if re.search(rf"(?<![A-Za-z]){re.escape(part.strip('_'))}", line)
    ]
    if not named:
        return f"does not name it: {line!r}"
    said = PYTHON.search(line)
    return f"says {said[0]}: {line!r}" if said else ""


def made_only(command: Command) -> Command:
    """Of training all but the training."""

    def main() -> None:
        with mock.patch.multiple(train, run_to_end=lambda *_: None, finish=lambda *_, **__: None):
            command.main()

    return replace(command, main=main) if command.config == "train" else command


def judged(word: str, end: End) -> str:
    """What is wrong with how a command ended, "" for nothing."""
    return end.wrong or (vague(word.partition("=")[0], end.text) if end.code == 2 else "")


if __name__ == "__main__":
    main(__doc__, made_only, cases, judged)
