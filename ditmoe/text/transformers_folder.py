"""Checks an untrusted folder of a text encoder before transformers reads it: no code, no blocking, bounded memory.

Calls of transformers on such a folder are wrapped by `one_line`: the library fails in many ways, with long messages,
and would ask the hub for what a configuration names.
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
"""Largest factor by which a tokenizer's normaliser may lengthen a caption; usual ones replace a letter by a letter."""
MOST_AROUND = 256
"""Most tokens that a template may add to a caption; usual ones add two to four."""
MOST_SPECIAL = 4096
"""Most special tokens that a configuration may add to a tokenizer, in quadratic time; T5 has 100."""
MOST_PARTS = 2**20
"""Largest count in a configuration (layers, labels, positions), since lists of that length are built."""
SPARE = 2**26
"""Parameters that a model may have beyond those in its files, tied or initialised: a pooler, positions."""
_COUNTS = re.compile(r"(^|_)(n|num|max)_|layer|depth|label|position")


def check_folder(folder: Path) -> dict[str, Any]:
    """Reject a folder with pipes, with references to code, or with counts and rules that take too much memory or time.

    Returns:
        The content of its config.json.

    Raises:
        OSError, ValueError: one line.
    """
    for file in sorted(folder.iterdir()):
        if not file.is_dir() and not is_regular(file):
            raise ValueError(f"{printable(file)} must be a plain file, got a broken link, a pipe or a device")
    config = read_object(folder / "config.json")
    _check_config(config, folder / "config.json")
    if is_regular(file := folder / "tokenizer.json"):
        rules = read_object(file)
        if (by := _growth(rules)) > MOST_GROWTH:
            raise ValueError(
                f"{printable(file)} must make captions at most {MOST_GROWTH} times as long, got {by:.3g}"
            )
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
    """Reject a model with more parameters than its files hold: the others would be initialised, at any size.

    Args:
        make: builds the model on the current device.

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
            f"{printable(folder / 'config.json')} must have the parameters of its weights, {there}, got {made}"
        )


def one_line(make: Callable[[], Any], folder: Path) -> Any:
    """Call transformers on a folder without the hub; if it fails, only one line is reported.

    Raises:
        ValueError: one line, for any error.
    """
    try:
        with _silent_unless_done(), _offline():
            return make()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of Rust code are not subclasses of Exception
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"{printable(folder)} cannot be opened as a text encoder: {printable(reason)}"
        ) from error


@contextmanager
def _silent_unless_done() -> Iterator[None]:
    """Hold back stderr until the end, and drop it after an error: panics of Rust code print a traceback."""
    try:
        own = os.dup(2)
    except OSError:  # stderr is closed
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
    """Keep transformers from using the hub: a configuration may name another model there, such as a backbone."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _check_config(config: Any, file: Path) -> None:
    """Reject huge counts, and options that make transformers load more code: kernels of the hub, and quantisers."""
    below = [config]
    while below:
        tree = below.pop()
        if isinstance(tree, list | dict):
            below += tree.values() if isinstance(tree, dict) else tree
        for name, value in tree.items() if isinstance(tree, dict) else ():
            if (name == "quantization_config" and value is not None) or (
                "_implementation" in name and value not in (None, "eager", "sdpa")
            ):
                raise ValueError(
                    f"{printable(file)} refers to code that is not trusted, refused: {printable(name)}"
                )
            if type(value) is int and abs(value) > MOST_PARTS and _COUNTS.search(name):
                raise ValueError(
                    f"{printable(file)}: {printable(name)} must lie between -{MOST_PARTS} and {MOST_PARTS}, got "
                    f"{str(value)[:40]}"
                )


def _growth(tree: Any) -> float:
    """Upper bound of the factor by which a tokenizer's normaliser, rule after rule, can lengthen a text."""
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
    """Number of pieces in all templates of a tokenizer; a special token counts its ids."""
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
