"""Sharded tensors on disk, by torch.distributed.checkpoint in safetensors, which hold no code.

Each process writes its shards, and replicated tensors are written once. Each file states the offsets of its shards
within the whole tensors. Any number of processes can read the files, and each reads only what it needs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditmoe.checkpoint.lazy_tensors import LazyTensor, open_file, remarks
from ditmoe.distributed import Ranks
from ditmoe.outside import parse_json

PER_FILE = 2**32
"""Approximate bytes of a file; writing it needs that much additional memory."""


@dataclass(frozen=True)
class Pieces:
    """A tensor whose pieces are in several files.

    Attributes:
        pieces: the offset of each piece along each axis of the whole, and the piece.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[tuple[tuple[int, ...], LazyTensor], ...]

    def read(self) -> Tensor:
        """The whole tensor, in newly allocated memory."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        for begin, piece in self.pieces:
            part = tuple(slice(b, b + n) for b, n in zip(begin, piece.shape, strict=True))
            whole[part] = piece.read()
        return whole


def write(tensors: Mapping[str, Tensor], folder: Path, ranks: Ranks) -> list[Path]:
    """Write tensors, sharded or replicated; all ranks call this. Returns the files that this rank wrote.

    Raises:
        OSError: on all ranks, if one of them failed.
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
    """Fill tensors, sharded or replicated, from a folder. All processes call this, and each reads only its shards.

    Raises:
        ValueError: if a tensor is missing or has another shape.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))
    except CheckpointException as error:
        raise ValueError(f"{folder} does not fit: {_first(error)}") from error


def open_folder(folder: Path, files: Iterable[str]) -> dict[str, Pieces]:
    """The tensors of these files of a folder, by name; their values stay on disk.

    Raises:
        ValueError: if the pieces of a tensor do not make up a whole one.
    """
    found: dict[str, list[tuple[tuple[int, ...], LazyTensor]]] = {}
    for name in files:
        begins = _begins(folder / name)
        for key, piece in open_file(folder / name).items():
            if not isinstance(piece, LazyTensor):
                raise ValueError(f"{folder / name} holds a tensor of a type that is not supported")
            found.setdefault(key, []).append((begins.get(key, (0,) * len(piece.shape)), piece))
    return {key: _joined(key, pieces, folder) for key, pieces in found.items()}


def _begins(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        stated = parse_json(remarks(file).get("DCP_SHARDING_INFO", "{}"))
        return {key: tuple(map(int, entry["saved_offsets"])) for key, entry in stated.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: it does not state the offsets of its pieces") from error


def _joined(key: str, pieces: list[tuple[tuple[int, ...], LazyTensor]], folder: Path) -> Pieces:
    ranks = {len(begin) for begin, _ in pieces} | {len(piece.shape) for _, piece in pieces}
    dtypes = {piece.dtype for _, piece in pieces}
    if len(ranks) != 1 or len(dtypes) != 1 or min((b for begin, _ in pieces for b in begin), default=0) < 0:
        raise ValueError(
            f"{folder} is damaged: the pieces of {key} differ in type or number of axes, or have negative offsets"
        )
    ends = [tuple(b + n for b, n in zip(begin, piece.shape, strict=True)) for begin, piece in pieces]
    shape = tuple(map(max, zip(*ends, strict=True)))
    if prod(shape) != sum(prod(piece.shape) for _, piece in pieces):
        raise ValueError(f"{folder} is damaged: the pieces of {key} do not make up its shape {shape}")
    if not _is_grid(list(zip([begin for begin, _ in pieces], ends, strict=True)), shape):
        raise ValueError(f"{folder} is damaged: the pieces of {key} overlap or leave gaps in {shape}")
    return Pieces(shape, pieces[0][1].dtype, tuple(pieces))


def _is_grid(boxes: list[tuple[tuple[int, ...], tuple[int, ...]]], shape: tuple[int, ...]) -> bool:
    """Whether boxes, given by begin and end along each axis, are the cells of one grid over a shape, as meshes shard.

    Pieces are read into uninitialised memory, so a gap would expose what was there before.
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
    """The last line of the first failed rank's error."""
    return str(next(iter(error.failures.values()))[0]).strip().splitlines()[-1]
