"""A text encoder's folder of a stranger, before transformers reads it: none of it runs, waits or takes memory.

What the libraries do with such a folder is done within `one_line`: they fail in many ways, in paragraphs, and ask the
hub for what a configuration names.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import nn

from ditmoe.checkpoint import open_file
from ditmoe.outside import is_regular, printable, read_object

MOST_GROWTH = 1000
"""How many times as long a tokenizer may make a caption before it cuts it; honest ones replace a letter by a letter."""
MOST_AROUND = 256
"""Pieces that a template may put around a caption; honest ones have two to four."""
MOST_SPECIAL = 4096
"""Special tokens that a configuration may add to a tokenizer, which takes quadratic time for them; T5 has 100."""
MOST_PARTS = 2**20
"""What a configuration may count: layers, labels, positions, of each of which lists are made."""
SPARE = 2**26
"""Numbers that a model may have beyond those of its files, which are tied or drawn: a pooler, positions."""
_COUNTS = re.compile(r"(^|_)(n|num|max)_|layer|depth|label|position")


def check_folder(folder: Path) -> dict[str, Any]:
    """Refuse a folder with pipes, with code of others, or with counts and rules that take a machine's memory or hours.

    Returns:
        What its config.json says.

    Raises:
        OSError, ValueError: one line.
    """
    for file in sorted(folder.iterdir()):
        if not file.is_dir() and not is_regular(file):
            raise ValueError(
                f"{printable(file)} must be a plain file: it is a link to nowhere, a pipe or a device"
            )
    config = read_object(folder / "config.json")
    _check_config(config, folder / "config.json")
    if is_regular(file := folder / "tokenizer.json"):
        rules = read_object(file)
        if (by := _growth(rules)) > MOST_GROWTH:
            raise ValueError(f"{printable(file)} must not make captions {by:.3g} times as long")
        if (pieces := _around(rules.get("post_processor"))) > MOST_AROUND:
            raise ValueError(
                f"{printable(file)} must put at most {MOST_AROUND} tokens around a caption, got {pieces}"
            )
    if is_regular(file := folder / "tokenizer_config.json"):
        for name, value in read_object(file).items():
            if isinstance(value, list | dict) and len(value) > MOST_SPECIAL and "special" in name:
                raise ValueError(
                    f"{printable(file)} must have at most {MOST_SPECIAL} {printable(name)}, got {len(value)}"
                )
    return config


def check_size(make: Callable[[], nn.Module], folder: Path) -> None:
    """Refuse a model of more numbers than its files hold: what is not in them would be drawn, of any size.

    Args:
        make: the model, on the device at hand.

    Raises:
        ValueError: one line.
    """
    with torch.device("meta"), catch_warnings():
        simplefilter("ignore")
        model = one_line(make, folder)
    made = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    there = sum(
        prod(getattr(x, "shape", ()))
        for file in folder.glob("*.safetensors")
        for x in open_file(file).values()
    )
    if made > there + SPARE:
        raise ValueError(
            f"{printable(folder / 'config.json')} makes {made} numbers, but its weights are {there}"
        )


def one_line(make: Callable[[], Any], folder: Path) -> Any:
    """What transformers makes of a folder; without the hub, and without a word where it fails but for the error's.

    Raises:
        ValueError: one line, whatever happened.
    """
    try:
        with _silent_unless_done(), _offline():
            return make()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of its Rust are not among Python's own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"{printable(folder)} cannot be opened as a text encoder: {printable(reason)}"
        ) from error


@contextmanager
def _silent_unless_done() -> Iterator[None]:
    """Keep what is written to stderr back until the end, and forget it after an error: panics of Rust print a trace."""
    try:
        own = os.dup(2)
    except OSError:  # it was closed
        yield
        return
    with tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        os.dup2(said.fileno(), 2)
        done = False
        try:
            yield
            done = True
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)
            if done:
                said.seek(0)
                sys.stderr.write(said.read().decode(errors="replace"))


@contextmanager
def _offline() -> Iterator[None]:
    """Ask the hub for nothing: a configuration may name another model there, as a backbone."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _check_config(config: Any, file: Path) -> None:
    """Refuse counts without end, and what makes transformers look for further packages.

    Those are kernels of the hub, which are code, and quantisers.
    """
    below = [config]
    while below:
        tree = below.pop()
        if isinstance(tree, list | dict):
            below += tree.values() if isinstance(tree, dict) else tree
        for name, value in tree.items() if isinstance(tree, dict) else ():
            if (name == "quantization_config" and value is not None) or (
                "_implementation" in name and value not in (None, "eager", "sdpa")
            ):
                raise ValueError(f"{printable(file)} names code of others, refused: {printable(name)}")
            if type(value) is int and abs(value) > MOST_PARTS and _COUNTS.search(name):
                raise ValueError(
                    f"{printable(file)}: {printable(name)} is absurd, refused: {str(value)[:40]}"
                )


def _growth(tree: Any) -> float:
    """How many times as long what a tokenizer replaces in a text, one after the other, makes it at the most."""
    growth, below = 1.0, [tree.get("normalizer") if isinstance(tree, dict) else None]
    while below:
        rule = below.pop()
        if isinstance(rule, list):
            below += rule
        elif isinstance(rule, dict):
            pattern = rule.get("pattern")
            found = pattern.get("String") if isinstance(pattern, dict) else pattern
            if isinstance(content := rule.get("content"), str):
                growth = min(
                    1e300,
                    growth * max(1.0, len(content) / max(1, len(found) if isinstance(found, str) else 1)),
                )
            below += rule.values()
    return growth


def _around(rule: Any) -> int:
    """Pieces of all templates of a tokenizer, each special token by its numbers."""
    total, below = 0, [rule]
    while below:
        each = below.pop()
        if isinstance(each, list):
            below += each
        elif isinstance(each, Mapping):
            lengths: dict[str, int] = {}
            if isinstance(special := each.get("special_tokens"), Mapping):
                lengths = {
                    k: len(v["ids"]) for k, v in special.items() if isinstance(v, Mapping) and "ids" in v
                }
            for piece in each.get("single") or ():
                token = piece.get("SpecialToken") if isinstance(piece, Mapping) else None
                total += max(1, lengths.get(str(token.get("id")), 1)) if isinstance(token, Mapping) else 1
            below += [value for name, value in each.items() if name == "processors"]
    return total
