"""Converts published weights of DiT, DiT-MoE and DiT-3D.

The source is read and rewritten one tensor at a time, and no code in it is executed. Clouds are (B, M, 3) here, and
(B, 3, M) in DiT-3D.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditmoe.checkpoint import LazyTensor, in_memory, open_file
from ditmoe.config.restore import checked
from ditmoe.modality import Tokens
from ditmoe.outside import tell
from ditmoe.pretrained import weights
from ditmoe.pretrained.published import Architecture, Recipe, architecture, check, recipes

WRAPPERS = ("ema", "model", "model_state", "state_dict")
"""Entries of training checkpoints that hold weights, averaged ones first."""
TIMES = {"scaled": 1.0, "unscaled": 0.001}
"""Factor on t before the embedding, by the range of t in training: [0, 1000] or [0, 1]."""
EMBED = "x_embedder.proj.weight"


def read(file: Path, entry: str | None = None) -> tuple[dict[str, LazyTensor | Tensor], str]:
    """The state dict in a checkpoint, with values not yet read, and the name of its entry, "" for none.

    Args:
        file: .safetensors, or any file of torch.save.
        entry: entry of a training checkpoint; None prefers "ema".

    Raises:
        FileNotFoundError, ValueError: if the file does not exist, is damaged, would execute code, or holds no supported
            model.
    """
    content = open_file(file)
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} must hold a state dict, got {type(content).__name__}")
    wrapped = [name for name in content if isinstance(content[name], Mapping)]
    if entry is None:
        entry = next((name for name in WRAPPERS if name in wrapped), "")
    elif entry not in wrapped:
        raise ValueError(f"{file} has no entry {entry}; it has {', '.join(map(str, wrapped)) or 'none'}")
    return _unprefixed(content[entry] if entry else content, file), entry


def _unprefixed(state: Mapping[Any, Any], file: Path) -> dict[str, LazyTensor | Tensor]:
    """Remove the prefix that module wrappers add to all names ("module.", "model.module.")."""
    prefix = next((str(key)[: -len(EMBED)] for key in state if str(key).endswith(EMBED)), None)
    if prefix is None:
        some = ", ".join(map(str, list(state)[:3])) or "nothing"
        raise ValueError(f"{file} must hold a DiT, DiT-MoE or DiT-3D with {EMBED}, got {some}")
    for key, value in state.items():
        kind = value.dtype if isinstance(value, LazyTensor | Tensor) else value
        if not isinstance(key, str) or not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            got = kind if isinstance(kind, torch.dtype | str) else type(kind).__name__
            raise ValueError(f"{file}: {key} must be a tensor of floats, got {got}")
        if 0 in value.shape:  # its other sizes take no bytes, and would become sizes of the model
            raise ValueError(f"{file}: {key} must not be empty, got the shape {tuple(value.shape)}")
    return {key.removeprefix(prefix): value for key, value in state.items()}


def convert_file(
    source: str | Path,
    out: str | Path,
    *,
    num_heads: int | None = None,
    top_k: int | None = None,
    size: int | None = None,
    time: str = "scaled",
    entry: str | None = None,
    max_shard_gb: float = 2.0,
) -> str:
    """Convert one checkpoint; returns one line that describes it.

    Args:
        num_heads: attention heads; None takes them from the QK LayerNorm, or from the published model of this depth and
            width.
        top_k: experts per token; None means 2, as in all published models.
        size: cells per axis of a sample, needed without a position table.
        time: "unscaled" for rectified-flow checkpoints, which were trained with t in [0, 1].
        entry: entry of a training checkpoint that holds the weights; None prefers "ema".
        max_shard_gb: size of the largest file.

    Raises:
        FileNotFoundError, ValueError: one line each; nothing is written.
    """
    options = {"num_heads": num_heads, "top_k": top_k, "size": size}
    for name, value in options.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
    if time not in TIMES:
        raise ValueError(f"time must be {' or '.join(TIMES)}, got {time!r}")
    if max_shard_gb <= 0:
        raise ValueError(f"max_shard_gb must be positive, got {max_shard_gb}")
    source = Path(source)
    state, found = read(source, entry)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    try:
        arch = architecture(shapes, num_heads, size)
        if top_k is not None and not arch.moe_layers:
            raise ValueError("top_k cannot be given: there are no experts")
        config = arch.config(top_k or 2, TIMES[time])
        with torch.device("meta"):
            model = weights.make(config)
        wanted = recipes(model, arch)
        check(shapes, wanted)
        check_positions(state, arch, model.tokens)
    except ValueError as error:
        raise ValueError(f"{source} does not fit: {error}") from error
    if arch.fused and time == "scaled":
        tell(
            "note: attention is laid out as in DiT-MoE-XL and -G, which were published for rectified flow: these need "
            "time=unscaled"
        )
    experts = f", top {top_k or 2}" if arch.moe_layers else ""
    line = f"{arch}{experts}; time {time}{f'; weights {found}' if found else ''}"
    config["found"] = line
    weights.write(out, config, translated(state, wanted, source), max_shard_gb * 1e9)
    return line


def check_positions(state: Mapping[str, LazyTensor | Tensor], arch: Architecture, tokens: Tokens) -> None:
    """Check that a checkpoint's position table equals the positions that ditmoe computes.

    Raises:
        ValueError: if it does not.
    """
    if "pos_embed" not in state:
        return
    size = arch.size or 0
    sample = (1, 1, 3) if arch.axes == 3 else (1, arch.in_channels, size, size)
    table = in_memory(state["pos_embed"]).float()
    own = tokens.positions(tokens.layout(torch.empty(sample)))[None]
    if table.shape != own.shape:
        raise ValueError(f"pos_embed is {tuple(table.shape)}, must be {tuple(own.shape)}")
    difference = (table - own).abs().max().item()
    if not difference < 5e-3:  # bf16 rounds 1 by as much
        raise ValueError(
            f"pos_embed must be the sin-cos table of {size} cells per axis, got one that differs by {difference:.3g}"
        )


def translated(
    state: Mapping[str, LazyTensor | Tensor], wanted: Mapping[str, Recipe], source: Path
) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the converted tensors, one at a time; ValueError for those that are not finite."""
    for name, recipe in wanted.items():
        yield name, recipe.join([checked(in_memory(state[key]), key, source) for key in recipe.keys])
