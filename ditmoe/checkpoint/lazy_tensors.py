"""Tensors that are read from their file one at a time, so that a file may be larger than memory.

Memory mapping is no alternative: torch and safetensors map a file privately and writable, which Linux refuses for a
file larger than memory.
"""

import io
import math
import os
import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditmoe.checkpoint import pickles
from ditmoe.outside import Plain, is_regular, may_hold, open_regular, parse_json, printable, shown

SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""Supported types of a safetensors file. A tensor of another type is represented by the type's name."""
LARGEST_HEADER = 100_000_000
"""Bytes."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file.

    Attributes:
        offset: of its first byte in the file.
        stride: in elements.
    """

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def rows(self, start: int, stop: int) -> "LazyTensor":
        """Rows start .. stop - 1 along the first axis; only these are read."""
        begin = self.offset + start * self.stride[0] * self.dtype.itemsize
        return replace(self, offset=begin, shape=(stop - start, *self.shape[1:]))

    def read(self) -> Tensor:
        """Read the tensor into newly allocated, contiguous memory.

        Raises:
            ValueError: if the shape is impossible or the file is too short.
        """
        if math.prod(max(n, 1) for n in self.shape) >= 2**63:
            raise ValueError(f"{self.file} is damaged: no tensor has the shape {self.shape}")
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        span = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        values = torch.empty(span, dtype=self.dtype)
        with open_regular(self.file) as file:
            file.seek(self.offset)
            if file.readinto(values.view(torch.uint8).numpy().data) < values.nbytes:
                raise ValueError(f"{self.file} is damaged: it ends too early")
        return values.as_strided(self.shape, self.stride).contiguous()


def in_memory(value: Any, name: str = "a tensor") -> Tensor:
    """The tensor itself; a `LazyTensor` or `Pieces` is read.

    Args:
        name: what a message calls it.

    Raises:
        ValueError: if it cannot be read, or is the name of an unsupported type.
    """
    if isinstance(value, str):
        raise ValueError(
            f"{printable(name)[:300]} is of type {printable(value)[:20]}, which is not supported"
        )
    return value if isinstance(value, Tensor) else value.read()


def open_file(file: Path) -> Any:
    """The content of a file of safetensors or torch.save, with `LazyTensor` in place of tensors; executes no code.

    Raises:
        FileNotFoundError, ValueError: if it does not exist, is damaged, or would execute code.
    """
    if not is_regular(file):
        raise FileNotFoundError(f"{file} does not exist" + (" as a plain file" if file.exists() else ""))
    try:
        if file.suffix == ".safetensors":
            return _safetensors(file)
        with open_regular(file) as stream:
            return _torch(stream, file)
    except Exception as error:
        raise ValueError(f"{file} {_reason(str(error))}") from error


def _torch(stream: Plain, file: Path) -> Any:
    size = os.fstat(stream.fileno()).st_size
    if not zipfile.is_zipfile(stream):
        stream.seek(0)
        return _lazy(pickles.load_old(stream, size), file, size)
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename: info for info in archive.infolist()}
        _check_plain(archive, size)
        found = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(found) != 1 or members[found[0]].file_size > LARGEST_HEADER:
            raise ValueError("it was not written by torch.save")
        prefix = found[0].removesuffix("data.pkl")

        def storage(key: str, dtype: torch.dtype, length: int) -> pickles.Storage:
            info = members[f"{prefix}data/{key}"]
            if length * dtype.itemsize > info.file_size:
                raise ValueError(f"a storage of {length} elements is larger than its record")
            return pickles.Storage(dtype, length, _start(stream, info))

        content = pickles.Machine(io.BytesIO(archive.read(found[0])), storage).load()
    return _lazy(content, file, size)


def _lazy(content: Any, file: Path, size: int) -> Any:
    """Replace `pickles.Place` by `LazyTensor`.

    Raises:
        ValueError: if tensors share storages to an extent that would need far more memory than the file has bytes; tied
            weights do not.
    """
    seen: dict[int, Any] = {}
    made = _stored(content, file, size, seen)
    tensors = {id(value): value for value in seen.values() if isinstance(value, LazyTensor)}.values()
    if sum(math.prod(each.shape) * each.dtype.itemsize for each in tensors) > may_hold(size):
        raise ValueError(
            f"its {len(tensors)} tensors share storages, and would need far more memory than the file has bytes"
        )
    return made


def _check_plain(archive: zipfile.ZipFile, size: int) -> None:
    """Raises ValueError unless records are uncompressed, in native byte order and no longer together than the file."""
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ValueError("it is compressed, unlike files of torch.save")
    if sum(info.file_size for info in archive.infolist()) > size:
        raise ValueError("it ends too early")
    for info in archive.infolist():
        if info.filename.endswith("/byteorder") and archive.read(info).decode() != sys.byteorder:
            raise ValueError(f"its byte order must be {sys.byteorder}-endian")


def _start(stream: Plain, info: zipfile.ZipInfo) -> int:
    """Offset of a record's bytes: after its local header, whose name and extra field may be longer (APPNOTE 4.3.7)."""
    before = stream.tell()
    stream.seek(info.header_offset)
    head = stream.read(30)
    stream.seek(before)
    if head[:4] != b"PK\3\4" or len(head) < 30:
        raise ValueError("a record is not at the offset that its archive states")
    name, extra = (int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + 30 + name + extra


def _stored(content: Any, file: Path, size: int, seen: dict[int, Any]) -> Any:
    """Replace `pickles.Place` by `LazyTensor`; an object that occurs several times stays one object.

    Args:
        size: of the file in bytes.
        seen: results by the id of their originals; updated.
    """
    if id(content) in seen:
        return seen[id(content)]
    made = content
    if isinstance(content, pickles.Place):
        length, origin = math.prod(content.shape) * content.dtype.itemsize, content.storage
        if length > size:
            raise ValueError(f"a tensor must store each element, got an expanded view of {content.shape}")
        start = origin.offset + content.offset * content.dtype.itemsize
        span = length and 1 + sum((n - 1) * s for n, s in zip(content.shape, content.stride, strict=True))
        if start + span * content.dtype.itemsize > size:
            raise ValueError("it ends too early")
        made = LazyTensor(file, start, content.dtype, content.shape, content.stride)
    elif isinstance(content, Mapping):
        made = {key: _stored(value, file, size, seen) for key, value in content.items()}
    elif isinstance(content, (list, tuple)):
        made = type(content)(_stored(value, file, size, seen) for value in content)
    seen[id(content)] = made
    return made


def remarks(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    return _header(file)[1].get("__metadata__", {})


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    with open_regular(file) as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > min(file.stat().st_size, LARGEST_HEADER):
            raise ValueError("its header is longer than the file")
        entries = parse_json(handle.read(length))
    if not isinstance(entries, dict):
        raise ValueError(f"its header must be an object of tensors, got {shown(entries)[:60]}")
    return length, entries


def _safetensors(file: Path) -> dict[str, Any]:
    size, (length, entries) = file.stat().st_size, _header(file)
    found: dict[str, Any] = {}
    taken: list[tuple[int, int]] = []
    for key, entry in entries.items():
        if key == "__metadata__":
            continue
        try:
            shape, (start, stop), dtype = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
        except (KeyError, TypeError, ValueError):
            shape, start, stop, dtype = (), None, None, None
        whole = type(dtype) is str and all(type(n) is int and n >= 0 for n in (start, stop, *shape))
        if len(shape) > pickles.MOST_AXES or not whole:
            raise ValueError(
                f"{printable(key)[:60]} must have a type, and a shape and two offsets of whole numbers"
            )
        taken.append((start, stop))
        if dtype not in SAFETENSORS:
            found[key] = str(dtype)
            continue
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        if stop - start != math.prod(shape) * SAFETENSORS[dtype].itemsize:
            raise ValueError(f"{printable(key)[:60]} does not have the size that its offsets state")
        if 8 + length + stop > size:
            raise ValueError("it ends too early")
        found[key] = LazyTensor(file, 8 + length + start, SAFETENSORS[dtype], shape, stride)
    taken.sort()
    if any(stop > start for (_, stop), (start, _) in pairwise(taken)):
        raise ValueError("its tensors overlap")
    return found


def _reason(text: str) -> str:
    """The first sentence of an error, without torch's advice to load the file with `weights_only=False`."""
    if found := re.search(r"^GLOBAL (\S+)", text):
        return f"would execute code when it is read, refused: {found[1]}"
    first = next(iter(text.strip().split(". ")[0].splitlines()), "")
    detail = "" if "weights" in text or not first else f": {first[:120]}"
    return f"is no checkpoint, or is damaged{detail}"
