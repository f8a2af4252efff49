"""Tensors that stay in their file until each is asked for, so that a file may be larger than memory.

Mapping the whole file would not do: torch and safetensors map it privately and writable, which Linux refuses
for a file larger than memory.
"""

import argparse
import json
import math
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""Types in a safetensors file that a tensor here can have; of others only the name is kept."""
LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: where its bytes are, and how they are laid out."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor, in memory of its own.

        Raises:
            ValueError: if the file ends before it does.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        span = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        values = torch.empty(span, dtype=self.dtype)
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            if file.readinto(values.view(torch.uint8).numpy().data) < values.nbytes:
                raise ValueError(f"{self.file} is damaged: it ends too early")
        return values.as_strided(self.shape, self.stride).contiguous()


def in_memory(value: Any) -> Tensor:
    """The tensor itself, wherever it is."""
    return value if isinstance(value, Tensor) else value.read()


def open_file(file: Path) -> Any:
    """What a .safetensors file or one of torch.save holds, with `Stored` in place of tensors; executes nothing.

    Files of torch.save from before its zip format (2020) are read whole, and hold tensors.

    Raises:
        FileNotFoundError, ValueError: if it is not there, is damaged, or would execute code.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    try:
        if file.suffix == ".safetensors":
            return _safetensors(file)
        # DiT keeps its options beside the weights, as an argparse.Namespace
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of other pickle protocols: what is not understood is refused
            if not zipfile.is_zipfile(file):
                return torch.load(file, map_location="cpu", weights_only=True)
            _check_plain(file)
            with FakeTensorMode():
                return _stored(torch.load(file, map_location="cpu", weights_only=True), file)
    except Exception as error:
        raise ValueError(f"{file} {_reason(str(error))}") from error


def _check_plain(file: Path) -> None:
    """The records must lie in the file as they will in memory."""
    with zipfile.ZipFile(file) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is compressed, as torch.save does not do")
        for info in archive.infolist():
            if info.filename.endswith("/byteorder") and archive.read(info).decode() != sys.byteorder:
                raise ValueError(f"it is of another byte order than {sys.byteorder}")


def _stored(content: Any, file: Path) -> Any:
    if isinstance(content, Tensor):
        storage: Any = content.untyped_storage()
        if content.numel() * content.element_size() > file.stat().st_size:
            raise ValueError(f"a tensor of shape {tuple(content.shape)} is larger than the file")
        start = storage._checkpoint_offset + content.storage_offset() * content.element_size()
        return Stored(file, start, content.dtype, tuple(content.shape), content.stride())
    if isinstance(content, Mapping):
        return {key: _stored(value, file) for key, value in content.items()}
    return content


def remarks(file: Path) -> dict[str, str]:
    """What a safetensors file says beside its tensors."""
    return _header(file)[1].get("__metadata__", {})


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > min(file.stat().st_size, LARGEST_HEADER):
            raise ValueError("its header is longer than the file")
        return length, json.loads(handle.read(length))


def _safetensors(file: Path) -> dict[str, Any]:
    size, (length, entries) = file.stat().st_size, _header(file)
    found: dict[str, Any] = {}
    for key, entry in entries.items():
        if key == "__metadata__":
            continue
        shape, (start, stop), dtype = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
        if dtype not in SAFETENSORS:
            found[key] = dtype
            continue
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        if stop - start != math.prod(shape) * SAFETENSORS[dtype].itemsize or min(start, *shape, 0) < 0:
            raise ValueError(f"{key} does not fill its place")
        if 8 + length + stop > size:
            raise ValueError("it ends too early")
        found[key] = Stored(file, 8 + length + start, SAFETENSORS[dtype], shape, stride)
    return found


def _reason(text: str) -> str:
    """What was wrong, without torch's advice to load the file all the same."""
    if found := re.search(r"GLOBAL:? (\S+)", text):
        return f"would execute code when it is read, refused: {found[1]}"
    first = next(iter(text.strip().split(". ")[0].splitlines()), "")
    detail = "" if "weights" in text or not first else f": {first[:120]}"
    return f"is no checkpoint, or is damaged{detail}"
