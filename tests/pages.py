"""What README, docs and the heads of `configs/` tell a person to type, for `test_docs`."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
Command = tuple[str, ...]
"""A module and its words: ("ditmoe.train", "modality=image")."""


def lines_of(page: Path) -> Iterator[str]:
    """Shell lines: of sh blocks, of code within text that is one of our commands, of the heads of YAML files."""
    text = page.read_text()
    if page.suffix == ".yaml":
        yield from re.findall(r"^# (python -m .*)$", text, re.MULTILINE)
        return
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`((?:python -m|\./run|torchrun)\s[^`]+)`", prose):
        yield " ".join(span.split())


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words of each command, variables replaced."""
    known: dict[str, str] = {}
    for line in lines_of(page):
        if match := re.match(r"(\w+)=(.*)$", line):
            known[match[1]] = "".join(shlex.split(match[2]))
            continue
        line = re.sub(r"(?<!\")\$(\w+)", lambda m: known[m[1]], line)
        for part in line.split(" && "):
            if words := shlex.split(part, comments=True):
                yield words[1:] if words[0] == "srun" else words


def ours(words: list[str]) -> Command | None:
    """The module and its words; None for a program that is not ours. `./run train` is what it stands for."""
    if words[0] == "./run" and words[1] not in ("setup", "lint", "help"):
        name, rest = words[1], words[2:]
        if name == "train" and not any(word.startswith("modality=") for word in rest):
            rest = ["modality=pointcloud", *rest]
        if name == "sample" and not any(word.startswith("checkpoint=") for word in rest):
            few = [] if any(word.startswith("num=") for word in rest) else ["num=9"]
            rest = ["checkpoint=starter/pointcloud", *rest, *few]
        return ("pytest" if name == "test" else f"ditmoe.{name}", *rest)
    if words[0] == "torchrun":
        return ("torchrun", *words[1:])
    return tuple(words[2:]) if words[:2] == ["python", "-m"] else None


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SAID = {tuple(words): page for page in [*CONFIGS, *PAGES] for words in commands_of(page)}
COMMANDS = sorted({command: None for words in SAID if (command := ours(list(words)))})
BLOCKS = [
    (f"{page.name}-{number}", block)
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    )
]


def files_of(page: Path) -> dict[str, str]:
    """Files that a page has a person write: blocks whose first line is a comment with a path."""
    blocks = re.findall(r"^```(?:python|yaml|toml)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return {
        m[1]: block for block in blocks if (m := re.match(r"# (\w+(?:/\w+)*\.\w+)$", block, re.MULTILINE))
    }


def modality_of(command: Command) -> str:
    named = re.search(r"modality=(\w+)|runs/(\w+)/", " ".join(command))
    return (named[1] or named[2]) if named else "pointcloud"


def product_of(command: Command) -> str | None:
    """The folder that a command makes, as others name it."""
    words = dict(word.split("=", 1) for word in command[1:] if "=" in word)
    if command[0] == "ditmoe.train":
        return f"runs/{modality_of(command)}/{words.get('name', 'default')}"
    makers = ("prepare", "mesh", "train_codec", "distill", "convert", "export")
    return (
        words["out"].rstrip("/") if command[0].removeprefix("ditmoe.") in makers and "out" in words else None
    )


def path_of(word: str) -> str:
    """What may be a path in a word, without the slash at its end."""
    return word.split("=", 1)[-1].rstrip("/")


def maker_of(path: str, modality: str) -> Command | None:
    """The shortest command that makes a folder, or the one that something in it lies in; of a modality first."""
    made = [c for c in COMMANDS if (p := product_of(c)) and (path == p or path.startswith(f"{p}/"))]
    return min(made, key=lambda c: (modality_of(c) != modality, len(c)), default=None)
