"""Tensors that are spread over processes, on disk: torch.distributed.checkpoint, in safetensors that hold no code.

Each process writes what it has, copies once; each file says of every tensor where in the whole its piece begins. Any
number of processes reads it, each what it needs.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditmoe.checkpoint.lazy_tensors import LazyTensor, open_file, remarks
from ditmoe.distributed import Ranks

PER_FILE = 2**32
"""Bytes of a file, about: all of it is in memory once more while it is written."""


@dataclass(frozen=True)
class Pieces:
    """A tensor whose parts lie in several files.

    Attributes:
        pieces: where each part begins in the whole, and the part.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[tuple[tuple[int, ...], LazyTensor], ...]

    def read(self) -> Tensor:
        """The whole, in memory of its own."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        for begin, piece in self.pieces:
            part = tuple(slice(b, b + n) for b, n in zip(begin, piece.shape, strict=True))
            whole[part] = piece.read()
        return whole


def write(tensors: Mapping[str, Tensor], folder: Path, ranks: Ranks) -> list[Path]:
    """Write tensors, spread or whole, with all ranks at once; the files that this one wrote.

    Raises:
        OSError: on all of them, if one could not.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save
    from torch.distributed.checkpoint.api import CheckpointException

    place, number = {}, 0
    for name, tensor in tensors.items():
        place[name] = 1 + number // PER_FILE
        number += tensor.numel() * tensor.element_size()
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=place, save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=ranks.group)
    except CheckpointException as error:
        raise OSError(f"{folder} cannot be written: {_first(error)}") from error
    return sorted(folder.glob(f"shard-{ranks.rank + 1:05d}-*.safetensors"))


def read_into(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors, spread or whole, with what was written; all processes at once, each reads its own.

    Raises:
        ValueError: if something is missing or has another shape.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))
    except CheckpointException as error:
        raise ValueError(f"{folder} does not fit: {_first(error)}") from error


def open_folder(folder: Path, files: Iterable[str]) -> dict[str, Pieces]:
    """What these files of a folder hold together; tensors stay on the disk.

    Raises:
        ValueError: if the pieces of a tensor are not the whole of it.
    """
    found: dict[str, list[tuple[tuple[int, ...], LazyTensor]]] = {}
    for name in files:
        begins = _begins(folder / name)
        for key, piece in open_file(folder / name).items():
            if not isinstance(piece, LazyTensor):
                raise ValueError(f"{folder / name} holds a tensor of a type that nobody here reads")
            found.setdefault(key, []).append((begins.get(key, (0,) * len(piece.shape)), piece))
    return {key: _joined(key, pieces, folder) for key, pieces in found.items()}


def _begins(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        stated = json.loads(remarks(file).get("DCP_SHARDING_INFO", "{}"))
        return {key: tuple(map(int, entry["saved_offsets"])) for key, entry in stated.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: it does not say where its pieces begin") from error


def _joined(key: str, pieces: list[tuple[tuple[int, ...], LazyTensor]], folder: Path) -> Pieces:
    ranks = {len(begin) for begin, _ in pieces} | {len(piece.shape) for _, piece in pieces}
    dtypes = {piece.dtype for _, piece in pieces}
    if len(ranks) != 1 or len(dtypes) != 1 or min((b for begin, _ in pieces for b in begin), default=0) < 0:
        raise ValueError(f"{folder} is damaged: the pieces of {key} are of different kinds")
    ends = [tuple(b + n for b, n in zip(begin, piece.shape, strict=True)) for begin, piece in pieces]
    shape = tuple(map(max, zip(*ends, strict=True)))
    if prod(shape) != sum(prod(piece.shape) for _, piece in pieces):
        raise ValueError(f"{folder} is damaged: the pieces of {key} do not make up its shape {shape}")
    if not _is_grid(list(zip([begin for begin, _ in pieces], ends, strict=True)), shape):
        raise ValueError(f"{folder} is damaged: the pieces of {key} overlap, or leave gaps in {shape}")
    return Pieces(shape, pieces[0][1].dtype, tuple(pieces))


def _is_grid(boxes: list[tuple[tuple[int, ...], tuple[int, ...]]], shape: tuple[int, ...]) -> bool:
    """Whether boxes (where each begins and ends) are all cells of one grid over a shape, as meshes cut tensors.

    What is read into new memory must fill it: a gap would show what was there before.
    """
    boxes = [(begin, end) for begin, end in boxes if all(b < e for b, e in zip(begin, end, strict=True))]
    cells = 1
    for axis, size in enumerate(shape):
        spans = sorted({(begin[axis], end[axis]) for begin, end in boxes})
        edges = [0, *(end for _, end in spans)]
        if size and ([begin for begin, _ in spans] != edges[:-1] or edges[-1] != size):
            return False
        cells *= len(spans)
    return len(set(boxes)) == len(boxes) == cells or 0 in shape


def _first(error: Any) -> str:
    """The first process's reason, in its own words."""
    return str(next(iter(error.failures.values()))[0]).strip().splitlines()[-1]
