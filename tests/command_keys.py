"""Every key and section of every composed configuration, set to what it is not.

`python -m tests.command_keys` runs them: each ends in success, or in one line with the key's name, or that of a
section that holds it, and no word of Python's own. Of training all is composed and made, but nothing trained. Each run
is a process of its own, forked when everything is loaded; there are thousands, of a second or two: --share, --only.
"""

import argparse
import hashlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ditmoe import train
from ditmoe.config import cli
from tests.command_numbers import WORK, Command, attempt, commands, warm

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


def cases(command: Command) -> Iterator[tuple[str, str]]:
    """Key and word of each."""
    for name in keys(command):
        for value in VALUES:
            yield name, f"{name}={value}"


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


def drawn(command: str, word: str, share: float, seed: int) -> bool:
    """Whether a case is among a share of all, the same each time."""
    digest = hashlib.sha256(f"{seed} {command} {word}".encode()).digest()
    return int.from_bytes(digest[:4]) < share * 2**32


def made_only(command: Command) -> Command:
    """Of training all but the training."""

    def main() -> None:
        train.run_to_end = lambda *_: None
        train.finish = lambda *_, **__: None
        command.main()

    return replace(command, main=main) if command.config == "train" else command


def main() -> None:
    """All of it, or a share."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the cases, drawn by their hash")
    parser.add_argument("--seed", type=int, default=0, help="of that hash")
    parser.add_argument("--only", default="", help="commands whose name begins so")
    parser.add_argument("--option", default="", help="options whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wrong = total = 0
    with tempfile.TemporaryDirectory() as place:
        for command in map(made_only, commands(Path(place))):
            if not command.name.startswith(options.only):
                continue
            chosen = [
                (name, word)
                for name, word in cases(command)
                if options.option in name and drawn(command.name, word, options.share, options.seed)
            ]
            if chosen:
                warm(command, Path(place))
                plain = attempt(command, Path(place))
                assert plain.code == 0, (command, plain)
            began = time.monotonic()
            for name, word in chosen:
                end = attempt(command, Path(place), word)
                asked = end.code is None and name.rsplit(".", 1)[-1] in WORK
                problem = end.wrong or (vague(name, end.text) if end.code == 2 else "")
                if problem and not asked:
                    wrong += 1
                    print(f"{command.name} {word}: {problem}", flush=True)
            total += len(chosen)
            print(f"{command.name}: {len(chosen)} in {time.monotonic() - began:.0f} s", flush=True)
    print(f"{total} command lines, {wrong} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
