"""What may stand in a pipeline's folder, which can come from a stranger: no code, no pickle, no path to elsewhere."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
PARTS = ("transformer", "scheduler", "memory")
FILES = frozenset({*PARTS, "vae", INDEX, "README.md", "metrics.json"})
"""All that export writes."""
OURS = {"transformer": ["ditmoe.parts", "Transformer"], "memory": ["ditmoe.parts", "Memory"]}
FORBIDDEN = frozenset({".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"})


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds code or pickles or names what is not ours or diffusers', before any is looked up.

    Raises:
        FileNotFoundError, ValueError: one line.
    """
    file = folder / INDEX
    if not file.is_file():
        raise FileNotFoundError(f"{folder} must be a folder that export wrote, but it holds no {INDEX}")
    index = _read(file)
    for name, value in index.items():
        if isinstance(value, list | dict) and value != [None, None] and not _is_known(name, value):
            raise ValueError(f"{file} names what is not trusted, refused: {name} = {value}")
    for part in PARTS:
        if part not in index:
            raise ValueError(f"{file} was not written by export: it lacks {part}")
    for found in sorted(folder.rglob("*")):
        if found.suffix.lower() in FORBIDDEN:
            raise ValueError(
                f"{found} could hold code, refused: weights must be safetensors, and nothing else runs"
            )
    for part in OURS:
        if not list((folder / part).glob("*.safetensors")):
            raise ValueError(f"{folder / part} must hold its weights as safetensors, but there are none")
        check_no_paths(_read(folder / part / "config.json").get("config"), folder / part / "config.json")


def check_no_paths(config: Any, file: Path) -> None:
    """Refuse an option that leads out of the folder: to another file, or to the hub.

    Raises:
        ValueError: naming it.
    """
    if isinstance(config, str) and _is_path(config):
        raise ValueError(f"{file} holds a path in its configuration, refused: {config!r}")
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        check_no_paths(value, file)


def without_paths(config: Any) -> Any:
    """A configuration whose paths are null: whoever samples needs none, and they tell of the machine it was made on."""
    if isinstance(config, dict):
        return {name: without_paths(value) for name, value in config.items()}
    if isinstance(config, list):
        return [without_paths(value) for value in config]
    return None if isinstance(config, str) and _is_path(config) else config


def check_replaceable(out: Path) -> None:
    """Raises ValueError unless the folder is new, empty, or holds what export wrote and nothing else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        check_folder(out)
        other = sorted({found.name for found in out.iterdir()} - FILES)
    except (ValueError, OSError):
        other = ["something else"]
    if other:
        raise ValueError(
            f"out must be new, or a folder that export wrote, but {out} holds {', '.join(other)}"
        )


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON, or is damaged") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(content).__name__}")
    return content


def _is_path(text: str) -> bool:
    return "/" in text or os.sep in text or "\\" in text or text.startswith(("~", ".."))


def _is_known(name: str, value: Any) -> bool:
    import diffusers

    from ditmoe import scheduler

    if name in OURS:
        return value == OURS[name]
    module, kind = value if isinstance(value, list) and len(value) == 2 else (None, None)
    if not isinstance(kind, str):
        return False
    if name == "scheduler" and module == scheduler.__name__:
        return kind in scheduler.__all__
    begins, ends = {"scheduler": ("", "Scheduler"), "vae": ("Autoencoder", "")}.get(name, ("/", "/"))
    return (
        module == "diffusers" and kind.startswith(begins) and kind.endswith(ends) and hasattr(diffusers, kind)
    )
