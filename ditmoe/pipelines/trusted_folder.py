"""Checks of a pipeline's folder from an untrusted source: no code, no pickles, no paths out of it."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditmoe.checkpoint.atomic import others_in
from ditmoe.checkpoint.fit import CONFIG, check_fits
from ditmoe.config import trust
from ditmoe.config.known_classes import find, is_allowed
from ditmoe.config.nested import put
from ditmoe.config.plain_values import check_scheduler
from ditmoe.outside import files_below, is_regular, printable, read_object
from ditmoe.pipelines.index import CLASS, CODE, INDEX, PIPELINE, is_own_code, known_name

SCHEDULER = "scheduler/scheduler_config.json"
PARTS, MODELS = ("transformer", "scheduler", "memory"), ("transformer", "memory", "vae")
LORA = "pytorch_lora_weights.safetensors"
OWN = re.compile(
    rf"{re.escape(INDEX)}|{re.escape(CODE)}|{SCHEDULER}|{LORA}|README\.md|metrics\.json|"
    rf"({'|'.join(MODELS)})/(config\.json|diffusion_pytorch_model[\w.-]*)"
)
"""Paths of the files that `export` writes."""
OURS = {"transformer": "Transformer", "memory": "Memory"}
"""The class of each component of ditmoe."""
FORBIDDEN = frozenset({".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"})


def check_folder(folder: Path, variant: str | None = None) -> None:
    """Refuse a folder with code or pickles, or that names classes of neither ditmoe nor diffusers, before loading it.

    Args:
        variant: of the weights, as in diffusers.

    Raises:
        FileNotFoundError, ValueError: with a message of one line.
    """
    file = folder / INDEX
    index = read_index(folder)
    real = Path(os.path.realpath(folder))
    for path in files_below(folder, hidden=True, special=True):
        # Files may be links, as in the hub's cache, but a link to a folder could lead through a whole disk.
        if not Path(os.path.realpath(path.parent)).is_relative_to(real):
            raise ValueError(f"{path.parent} leads out of the folder, refused: it is a link, or lies in one")
        if path.suffix.lower() in FORBIDDEN and not (is_regular(path) and is_own_code(path, folder)):
            raise ValueError(f"{path} could hold code, refused: weights must be safetensors")
        if not is_regular(path):
            raise ValueError(f"{path} must be a plain file: it is a pipe, a device or a broken link")
    check_index(index, file)
    check_scheduler(read_object(folder / SCHEDULER), folder / "scheduler")
    configs = {part: _read_config(folder / part) for part in OURS}
    check_index(index, file, trust.autoencoders(configs["memory"]))
    for part in OURS:
        if not list((folder / part).glob("*.safetensors")):
            raise ValueError(f"{folder / part} must hold its weights as safetensors, got none")
    if isinstance(index.get("vae"), list) and index["vae"] != [None, None]:
        check_fits(find(f"diffusers.{index['vae'][1]}"), folder / "vae", variant)


def read_index(folder: Path) -> dict[str, Any]:
    """The content of a pipeline's `model_index.json`.

    Raises:
        FileNotFoundError, ValueError: if it is missing or invalid.
    """
    if not is_regular(file := folder / INDEX):
        raise FileNotFoundError(f"{folder} must be a folder that export wrote, but it holds no {INDEX}")
    return read_object(file)


def check_index(index: Mapping[str, Any], file: Path, autoencoders: Sequence[str] | None = None) -> None:
    """Check that an index has all required components and names only classes of ditmoe and diffusers.

    Args:
        autoencoders: allowed autoencoder classes of diffusers; None, before the modality is known: any of them.

    Raises:
        ValueError: with one line, otherwise.
    """
    for part in PARTS:
        if part not in index:
            raise ValueError(f"{file} was not written by export: it lacks {part}")
    for name, value in index.items():
        if name == "_class_name":
            known = value in (CLASS, PIPELINE)
        elif name in PARTS or name == "vae":
            known = (name == "vae" and value == [None, None]) or _is_known(name, value, autoencoders)
        else:  # diffusers' own entries, such as its version
            known = not isinstance(value, list | tuple | dict) or list(value) == [None, None]
        if not known:
            raise ValueError(
                f"{file} names a component that is not trusted, refused: {printable(name)} = {printable(value)}"
            )


def _read_config(folder: Path) -> dict[str, Any]:
    """The checked configuration of one of ditmoe's components."""
    file, config = folder / CONFIG, read_object(folder / CONFIG).get("config")
    admitted = trust.admit(config, list(config) if isinstance(config, dict) else [], file)
    for option, value in trust.withheld(admitted):
        if trust.is_path(value):
            raise ValueError(f"{file} holds a path in its configuration, refused: {option} = {value!r}")
    return admitted


def without_paths(config: Any) -> Any:
    """A configuration with null for all paths: sampling needs none, and they would reveal the machine's folders."""
    if isinstance(config, dict):
        kept = {name: without_paths(value) for name, value in config.items()}
        for option in trust.opens(config):
            put(kept, option, None)
        return kept
    if isinstance(config, list):
        return [without_paths(value) for value in config]
    return None if isinstance(config, str) and trust.is_path(config) else config


def check_replaceable(out: Path) -> None:
    """Raises ValueError unless the folder is new, empty, or holds only what `export` wrote."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        check_folder(out)
        other = others_in(out, OWN.fullmatch)
    except (ValueError, OSError):
        other = ["something else"]
    if other:
        raise ValueError(
            f"out must be new, or a folder that export wrote, but {out} holds {', '.join(other)}"
        )


def _is_known(name: str, value: Any, autoencoders: Sequence[str] | None) -> bool:
    from ditmoe.diffusion import schedulers

    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    module, kind = value
    if not isinstance(kind, str):
        return False
    if name in OURS:  # the second is how they were named before
        own = OURS[name]
        return [module, kind] in (["diffusers", known_name(own)], ["ditmoe.pipelines", own])
    if name == "scheduler" and any(
        [module, kind] in (["diffusers", known_name(own)], ["ditmoe.diffusion", own])
        for own in schedulers.__all__
    ):
        return True
    if name == "vae":
        known = (
            re.fullmatch(r"(Asymmetric)?Autoencoder\w+", kind)
            if autoencoders is None
            else kind in autoencoders
        )
        return module == "diffusers" and bool(known)
    return name == "scheduler" and module == "diffusers" and is_allowed(f"diffusers.{kind}", "scheduler")
