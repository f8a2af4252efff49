"""A safe reader for the pickles of torch.save, which gives tensors as positions in the file.

A pickle (PEP 3154) is a program for a stack machine. This interpreter knows dictionaries, lists, numbers and strings,
and only the names in `_NAMED`. torch's safe unpickler does not suffice: it calls what the pickle requests
(`bytearray(4 * 10**9)` is an allowed call of 60 bytes), keeps its memo in an array as long as the largest index in the
file, and hashes keys that take forever.
"""

import argparse
import io
import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ditmoe.outside import printable

MAGIC = 0x1950A86A20F9469CFC6C
"""The first value in files of torch.save from before its zip format (2020)."""
MOST_AXES = 16
MOST_COPIED = 10**6
"""Bound on the list and dictionary entries that all calls of a pickle copy together."""
_NUMBERS = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
            "complex64", "complex128")  # fmt: skip
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip


@dataclass
class Storage:
    """A contiguous array of one type in a file.

    Attributes:
        length: in elements.
        offset: in bytes from the start of the file; set once the whole file is read.
    """

    dtype: torch.dtype
    length: int
    offset: int = -1


@dataclass(frozen=True)
class Place:
    """A tensor as a view of a storage; `offset` and `stride` are in elements."""

    storage: Storage
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(*given: Any) -> Place:
    """A tensor, of the arguments of torch._utils._rebuild_tensor, _v2 or _v3: the first four, and _v3's dtype."""
    storage, offset, shape, stride = given[:4]
    dtype = given[6] if len(given) > 6 and isinstance(given[6], torch.dtype) else None
    if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > MOST_AXES:
        raise ValueError("a tensor is not what torch.save writes")
    numbers = (offset, *shape, *stride)
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        kinds = ", ".join(sorted({type(n).__name__ for n in numbers}))
        raise ValueError(f"a tensor must have a shape and strides of whole numbers below 2^63, got {kinds}")
    span = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if math.prod(shape) else 0
    own = dtype or storage.dtype
    if (offset + span) * own.itemsize > storage.length * storage.dtype.itemsize:
        raise ValueError(f"a tensor of {tuple(shape)} lies outside its storage")
    return Place(storage, offset, own, tuple(shape), tuple(stride))


def _first(*given: Any) -> Any:
    return given[0]


class _Call:
    """A callable that a pickle may name, with the function that replaces it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


_NAMED: dict[str, Any] = {
    "collections.OrderedDict": _Call(lambda pairs=(): OrderedDict((_key(k), v) for k, v in pairs)),
    "argparse.Namespace": _Call(argparse.Namespace),  # DiT stores its options beside the weights
    "torch._utils._rebuild_tensor": _Call(_tensor),
    "torch._utils._rebuild_tensor_v2": _Call(_tensor),
    "torch._utils._rebuild_tensor_v3": _Call(_tensor),
    "torch._utils._rebuild_parameter": _Call(_first),
    "torch.Size": _Call(lambda sizes=(): tuple(sizes)),
    **{f"torch.{name}": dtype for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": getattr(torch, name) for name in _NUMBERS},
    "torch.storage.UntypedStorage": torch.uint8,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_PUSHED = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
}  # fmt: skip
_MARK = object()


def _key(key: Any) -> Any:
    """Check a key of a dictionary or a storage; nested tuples may take forever to hash or to print."""
    if not isinstance(key, (str, bytes, int, float, bool)) and key is not None:
        raise ValueError(f"keys must be strings or numbers, got {type(key).__name__}")
    return key


class Machine:
    """Reads one pickle after another from a stream.

    Args:
        storage: returns the storage of a key, type and length in elements.

    Raises:
        ValueError: if a pickle uses a name that is not allowed, or is damaged.
    """

    def __init__(
        self, stream: io.BufferedIOBase, storage: Callable[[str, torch.dtype, int], Storage]
    ) -> None:
        self.stream, self._storage = stream, storage

    def load(self) -> Any:
        """Read the next pickle."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0
        try:
            for operation, argument, _ in pickletools.genops(self.stream):  # type: ignore[arg-type]
                if operation.name == "STOP" and len(self.stack) == 1 and self.stack[0] is not _MARK:
                    return self.stack.pop()
                self._run(operation.name, argument)
        except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"its pickle is damaged ({type(error).__name__})") from error
        raise ValueError("its pickle has no end")

    def _run(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _PUSHED:
            if isinstance(argument, int) and argument.bit_length() > 128:
                raise ValueError("a number has more than 128 bits")
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self._marked()
            stack.append(items if name == "LIST" else tuple(items) if name == "TUPLE" else _paired(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._marked()
            _of(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._marked()
            _of(stack[-1], dict).update(_paired(items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            named = argument.split(" ", 1) if name == "GLOBAL" else [stack.pop(), stack.pop()][::-1]
            stack.append(_named(".".join(_of(part, str) for part in named)))
        elif name in ("REDUCE", "NEWOBJ"):
            given, call = stack.pop(), stack.pop()
            self._copy(given, *_of(given, tuple))
            stack.append(_of(call, _Call).function(*given))
        elif name == "BUILD":
            self._copy(state := stack.pop())
            if isinstance(stack[-1], argparse.Namespace):
                vars(stack[-1]).update({str(key): value for key, value in _of(state, dict).items()})
            else:
                _of(stack[-1], OrderedDict)  # its _metadata are not needed for the tensors
        elif name == "BINPERSID":
            stack.append(self._stored(*_of(stack.pop(), tuple)))
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"its pickle is not what torch.save writes ({name})")

    def _copy(self, *values: Any) -> None:
        self.copied += sum(len(value) for value in values if isinstance(value, (dict, list, tuple)))
        if self.copied > MOST_COPIED:
            raise ValueError(f"its pickle copies more than {MOST_COPIED} entries")

    def _marked(self) -> list[Any]:
        """Pop the items above the topmost mark, and the mark."""
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise IndexError

    def _stored(self, kind: str, dtype: Any, key: Any, place: Any, length: Any, *view: Any) -> Storage:
        if kind != "storage" or type(length) is not int or length < 0 or any(v is not None for v in view):
            raise ValueError("a storage is not what torch.save writes")
        return self._storage(str(_key(key)), _of(dtype, torch.dtype), length)


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _paired(items: list[Any]) -> dict[Any, Any]:
    return {_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)}


def _named(name: str) -> Any:
    if name not in _NAMED:
        raise ValueError(f"GLOBAL {printable(name)}")
    return _NAMED[name]


def load_old(stream: io.BufferedIOBase, size: int) -> Any:
    """Read a file of torch.save from before 2020: five pickles, then each storage after its length.

    Args:
        size: of the file in bytes.
    """
    storages: dict[str, Storage] = {}

    def storage(key: str, dtype: torch.dtype, length: int) -> Storage:
        found = storages.setdefault(key, Storage(dtype, length))
        if found.dtype != dtype or found.length != length or length * dtype.itemsize > size:
            raise ValueError(f"a storage of {length} elements is larger than the file")
        return found

    machine = Machine(stream, storage)
    if machine.load() != MAGIC:
        raise ValueError("it was not written by torch.save")
    machine.load()  # the version
    if not _of(machine.load(), dict).get("little_endian", True):
        raise ValueError("its byte order must be little-endian")
    content = machine.load()
    for key in _of(machine.load(), list):
        length = int.from_bytes(stream.read(8), "little")
        found = storages.get(str(_key(key))) or Storage(torch.uint8, 0)
        if length != found.length or stream.tell() + length * found.dtype.itemsize > size:
            raise ValueError("it ends too early")
        found.offset = stream.tell()
        stream.seek(length * found.dtype.itemsize, io.SEEK_CUR)
    if any(found.offset < 0 for found in storages.values()):
        raise ValueError("it ends too early")
    return content
