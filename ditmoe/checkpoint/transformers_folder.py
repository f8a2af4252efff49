"""A folder of a stranger for the library transformers: none of it runs, waits or takes memory.

What the libraries do with such a folder is done within `one_line`: they fail in many ways, in paragraphs, and ask the
hub for what a configuration names.
"""

import hashlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import nn

from ditmoe.checkpoint.atomic import digest
from ditmoe.checkpoint.fit import bounded
from ditmoe.checkpoint.lazy_tensors import open_file
from ditmoe.checkpoint.tokenizer_rules import check_special, check_tokenizer
from ditmoe.outside import at_home, is_regular, printable, read_object, shown

INSTALL = "pip install 'ditmoe[transformers]'"
READ = ("*.safetensors", "*.json", "*.txt", "*.model")
"""Files of weights, configuration and tokenizer: the only ones that are fetched, and what the fingerprint is of."""
TRUSTED: Mapping[str, Any] = {"trust_remote_code": False, "local_files_only": True}
"""Options of everything that opens such a folder."""
ENCODER = "a text encoder"
MOST_PARTS = 2**20
"""What a configuration may count: layers, positions, of each of which lists are made."""
MOST_LABELS = 2**16
"""Labels, whose names transformers copies again and again: a million took minutes; ImageNet has 21,841."""
SPARE = 2**26
"""Numbers that a model may have beyond those of its files, which are tied or drawn: a pooler, positions."""
MOST_COMPUTED = 2**22
"""Numbers of a table of positions that is computed: a few seconds."""
SINUSOIDAL = ("roformer", "distilbert", "xlm", "flaubert")
"""Models that compute one, whatever else their configuration says."""
WIDTHS = ("hidden_size", "d_model", "dim", "emb_dim", "n_embd", "embedding_size")
_COUNTS = re.compile(r"(^|_)(n|num|max)_|layer|depth|label|position")


def library_for(what: str) -> Any:
    """The module transformers.

    Raises:
        ValueError: if it is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(f"{what} of transformers needs that library: {INSTALL}")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # a table of what does not fit, beside the error
    return transformers


def folder_at(path: str | PathLike) -> Path:
    """A folder; what is none is a name on the hub, and fetched.

    Raises:
        ValueError: one line, if it cannot be.
    """
    place = at_home(path)
    if place.is_dir():
        return place
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(os.fspath(path), allow_patterns=list(READ)))
    except Exception as error:  # the hub fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{printable(path)} is no folder, and cannot be fetched: {reason}") from error


def fingerprint(folder: Path, more: Sequence[str] = ()) -> str:
    """SHA-256 of weights, configuration and tokenizer, and of what else decides.

    Raises:
        ValueError: if the weights are no safetensors.
    """
    files = sorted({file for pattern in READ for file in folder.glob(pattern) if is_regular(file)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise ValueError(f"{printable(folder)} must hold weights as .safetensors, but there are none")
    parts = [*(f"{file.name} {digest(file)}" for file in files), *more]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load_model(
    kind: Any,
    blank: Callable[[], nn.Module],
    folder: Path,
    what: str = ENCODER,
    dtype: torch.dtype = torch.float32,
    spared: str = "pooler",
) -> tuple[Any, bool]:
    """A model with its weights, frozen, and whether its files lack those of a part, which are drawn at random.

    Args:
        kind: its class in transformers.
        blank: makes one without weights.
        spared: what the names of weights contain that may be missing; a pooler, without which heads such as that of
            masked words are trained.

    Raises:
        OSError, ValueError: one line.
    """
    options = {**TRUSTED, "use_safetensors": True, "dtype": dtype, "output_loading_info": True,
               "ignore_mismatched_sizes": True}  # fmt: skip
    tensors = sum(len(open_file(file)) for file in folder.glob("*.safetensors"))
    with bounded(tensors):  # a billion layers are a line of its configuration
        check_size(blank, folder, what)
        model, found = one_line(lambda: kind.from_pretrained(folder, **options), folder, what)
    if found["mismatched_keys"]:
        name, there, made = min(found["mismatched_keys"])
        raise ValueError(
            f"the weights of {printable(folder)} are not those of its config.json: {printable(name)} is {list(there)}, "
            f"must be {list(made)}"
        )
    missing = sorted(found["missing_keys"])
    if others := [name for name in missing if spared not in name]:
        raise ValueError(
            f"the weights of {printable(folder)} are not whole: {printable(others[0])} is missing"
        )
    return model.eval().requires_grad_(False), bool(missing)


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
    for file in sorted(folder.glob("*.index.json")):
        _check_shards(file)
    config = read_object(folder / "config.json")
    _check_config(config, folder / "config.json")
    _check_positions(config, folder)
    if is_regular(file := folder / "tokenizer.json"):
        check_tokenizer(read_object(file), file)
    if is_regular(file := folder / "tokenizer_config.json"):
        check_special(read_object(file), file)
    return config


def check_size(make: Callable[[], nn.Module], folder: Path, what: str = ENCODER) -> None:
    """Refuse a model of more numbers than its files hold: what is not in them would be drawn, of any size.

    Args:
        make: the model, on the device at hand.

    Raises:
        ValueError: one line.
    """
    with torch.device("meta"), catch_warnings():
        simplefilter("ignore")
        model = one_line(make, folder, what)
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


def one_line(make: Callable[[], Any], folder: Path, what: str = ENCODER) -> Any:
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
        raise ValueError(f"{printable(folder)} cannot be opened as {what}: {printable(reason)}") from error


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


def _check_shards(file: Path) -> None:
    """Refuse an index of weights that names files elsewhere, which nobody named and no fingerprint is of."""
    shards = read_object(file).get("weight_map")
    for name in shards.values() if isinstance(shards, dict) else [shards]:
        if not isinstance(name, str) or Path(name).name != name or not is_regular(file.parent / name):
            raise ValueError(
                f"{printable(file)} must name files of weights beside it in its weight_map, got {shown(name)}"
            )


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
            counts = [value, *(value if isinstance(value, list) else [])] if _COUNTS.search(name) else []
            most = MOST_LABELS if "label" in name else MOST_PARTS
            if absurd := [count for count in counts if type(count) is int and abs(count) > most]:
                raise ValueError(
                    f"{printable(file)}: {printable(name)} is absurd, refused: {str(absurd[0])[:40]}"
                )


def _check_positions(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a large table of positions that is in no file: it would be computed, number by number, in Python."""
    numbers = {name: value for name, value in config.items() if type(value) is int and value > 0}
    positions = max((value for name, value in numbers.items() if "position" in name), default=0)
    width = max((numbers.get(name, 1) for name in WIDTHS), default=1)
    rotary = any("rope" in name or "rotary" in name for name in config)
    if positions * width <= MOST_COMPUTED or (rotary and config.get("model_type") not in SINUSOIDAL):
        return
    tables = (
        getattr(x, "shape", ())
        for file in folder.glob("*.safetensors")
        for name, x in open_file(file).items()
        if "pos" in name or "wpe" in name
    )
    if max((next(iter(shape), 0) for shape in tables), default=0) < positions:
        raise ValueError(
            f"{printable(folder / 'config.json')} has {positions} positions of {width} numbers, but no file holds them"
        )
