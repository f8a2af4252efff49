"""Folders of converted models: safetensors shards, and the configuration to build the model."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ditmoe import checkpoint
from ditmoe.checkpoint import LazyTensor, in_memory, open_file
from ditmoe.checkpoint.atomic import others_in, recover, replacing_folder, writing
from ditmoe.checkpoint.fit import bounded, check_fit
from ditmoe.config import build, trust
from ditmoe.config.limits import check_depth
from ditmoe.config.plain_values import LARGEST, check_plain
from ditmoe.config.restore import averaged, checked, load_weights, materialise, set_top_k
from ditmoe.modality import Tokens
from ditmoe.model import DiTMoE
from ditmoe.outside import check_number, in_utf8, is_regular, printable, read_json
from ditmoe.outside import device as own_device

FORMAT = "ditmoe-weights-1"
CONFIG = "config.json"
OWN = re.compile(r"config\.json|weights-\d{5,}\.safetensors")
"""Names of the files that `write` writes."""
SECTIONS = ("model", "tokens", "router", "conditioning", "num_classes")


def write(
    folder: str | Path,
    config: dict[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    max_shard_bytes: float = 2e9,
) -> list[Path]:
    """Write a model's folder atomically; the tensors of one shard are in memory at a time.

    Args:
        folder: a new one, or one that this function wrote, which is replaced when the new one is complete.
        config: "model", "tokens", "conditioning", "num_classes" and "router" (or None), as `load` needs them.
        tensors: names and values, one at a time.
        max_shard_bytes: size of the largest shard; a single larger tensor gets its own.

    Raises:
        ValueError: if the folder holds something else.
    """
    folder = Path(folder).absolute()
    _check_replaceable(folder)
    shards: list[str] = []
    with replacing_folder(folder) as draft:
        for shard in _shards(tensors, max_shard_bytes):
            shards.append(f"weights-{len(shards) + 1:05d}.safetensors")
            with writing(folder), in_utf8(draft / shards[-1]) as file:
                save_file(shard, file)
            shard.clear()
        content = {"format": FORMAT, **config, "shards": shards}
        (draft / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    return [folder / name for name in shards]


def _shards(tensors: Iterable[tuple[str, Tensor]], limit: float) -> Iterable[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
        del tensor
    yield shard


def _check_replaceable(folder: Path) -> None:
    recover(folder)
    if not folder.exists():
        return
    try:
        _read_config(folder)
        other = others_in(folder, OWN.fullmatch)
    except (ValueError, OSError):
        other = ["something else"] if not folder.is_dir() or any(folder.iterdir()) else []
    if other:
        raise ValueError(
            f"{printable(folder)} must be new, or a folder that convert wrote, got one that holds {', '.join(other)}"
        )


def load(
    folder: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    top_k: int | None = None,
) -> DiTMoE:
    """The model in a folder that `python -m ditmoe.convert` wrote, in evaluation mode.

    Its `model(x, t, y)` takes t from 0 (data) to 1000 (noise), regardless of the published code. Nothing in the folder
    is executed.

    Args:
        device: of the model; None chooses the GPU if there is one.
        dtype: of the weights, and of the samples it will get.
        top_k: experts per token, if other than in the conversion.

    Raises:
        FileNotFoundError, ValueError: one line each, if there is no such folder, or its weights do not fit.
    """
    folder = Path(folder)
    recover(folder)
    config = admitted(folder)
    if top_k is not None:
        set_top_k(config, top_k, folder / CONFIG)
    with build.describing(folder / CONFIG):
        tensors = _tensors(folder, config["shards"])
        check_depth(config["model"], tensors)
        with torch.device("meta"), bounded(len(tensors)):
            model = make(config).to(dtype)
        check_fit(model, tensors, folder)
        model = materialise(model, lambda: make(config).to(dtype), device or own_device())
        load_weights(model, tensors, folder)
    return model.eval()


def admitted(folder: Path) -> dict[str, Any]:
    """The checked configuration of a folder that convert wrote.

    Raises:
        FileNotFoundError, ValueError: one line each.
    """
    config, file = _read_config(folder), folder / CONFIG
    if type(config["tokens"]) is not dict:
        raise ValueError(f"tokens of {file} must be a section, got {type(config['tokens']).__name__}")
    check_number(f"num_classes of {file}", config["num_classes"], 0, LARGEST, whole=True)
    return config | trust.admit(config, SECTIONS, folder / CONFIG)


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether converted weights were trained by flow matching, with t in [0, 1], or else by DDPM."""
    return bool(config["model"].get("time_scale", 1.0) != 1.0)


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of a run (the averaged ones), or of a folder that convert wrote.

    Raises:
        FileNotFoundError, ValueError: one line each.
    """
    path = Path(path)
    recover(path)
    if is_regular(path / CONFIG):
        config = admitted(path)
        return config, _finite(_tensors(path, config["shards"]), path)

    def newest() -> tuple[dict[str, Any], dict[str, Tensor]]:
        found = checkpoint.find(path, parts=("ema",))
        weights = _finite(averaged(found), found.path)
        return trust.admit(found.part("config"), ("model",), found.path), weights

    return checkpoint.unless_dropped(path, newest)


def _finite(weights: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """Weights in memory.

    Raises:
        ValueError: naming the first that is not finite, before any training that it would spoil.
    """
    return {name: checked(in_memory(value), name, file) for name, value in weights.items()}


def _tensors(folder: Path, shards: Iterable[str]) -> dict[str, LazyTensor]:
    weights: dict[str, LazyTensor] = {}
    for name in shards:
        weights |= open_file(folder / Path(name).name)
    return weights


def make(config: dict[str, Any]) -> DiTMoE:
    """A freshly initialised model from a folder's configuration."""

    def tokens(hidden_size: int) -> Tokens:
        return build.make(config["tokens"], hidden_size=hidden_size)

    return build.assemble(config, tokens, config["num_classes"])


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not is_regular(file):
        raise FileNotFoundError(f"{folder} must be a folder that convert wrote, but it holds no {CONFIG}")
    config = read_json(file)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{file} was not written by convert: it lacks format = {FORMAT}")
    for key in (*SECTIONS, "shards"):
        if key not in config:
            raise ValueError(f"{file} is damaged: it lacks {key}")
    check_plain(config, f"the configuration of {file}")
    shards = config["shards"]
    if (
        not isinstance(shards, list)
        or not all(type(name) is str for name in shards)
        or len({*shards}) < len(shards)
    ):
        raise ValueError(f"{file} is damaged: its shards must be a list of distinct names")
    return config
