"""The manifest of a checkpoint folder: plain values in JSON, and digests that verify its files."""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ditmoe.checkpoint.lazy_tensors import LazyTensor
from ditmoe.checkpoint.places import MANIFEST as NAME
from ditmoe.outside import file_name, read_json

FORMAT = "ditmoe-2"


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder.

    Raises:
        ValueError: if the folder has none, or one that is damaged.
    """
    file = folder / NAME
    try:
        content = read_json(file)
        stated = content.pop("digest")
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, must be {FORMAT!r}")
        if stated != _digest_of(content):
            raise ValueError("its digest does not fit its content")
        if (
            not isinstance(content["parts"], dict)
            or type(content["step"]) is not int
            or not 0 <= content["step"] < 2**63
        ):
            raise ValueError("its parts must be an object, and its step a whole number of at least 0")
        if not all(file_name(name) == name for name in content["parts"]):
            raise ValueError("the name of each part must be safe as a file name")
        if not all(
            isinstance(entry["sha256"], str) and "bytes" in entry for entry in content["files"].values()
        ):
            raise ValueError("its list of files must give the bytes and SHA-256 of each")
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no checkpoint of ditmoe: it lacks {NAME}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder} is no checkpoint of ditmoe, or is damaged: {NAME}: {error}") from error
    return content


def sealed(content: Mapping[str, Any]) -> bytes:
    """A manifest with its own digest, as UTF-8 JSON."""
    content = json.loads(json.dumps(content))  # as it will be read back: lists for tuples, and string keys
    return (json.dumps({**content, "digest": _digest_of(content)}, indent=1) + "\n").encode()


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def split(part: Any, path: str = "") -> tuple[Any, dict[str, Any]]:
    """Split a part into plain values and tensors by path. Keys become strings and tuples become lists, as in JSON.

    In the plain values, None replaces a tensor in a list. In a path, `/` and `~` of a key are written `~1` and `~0`.
    """
    if isinstance(part, Tensor):
        return None, {path.removesuffix("/"): part.detach().contiguous()}
    if isinstance(part, LazyTensor):
        return None, {path.removesuffix("/"): part}
    if not isinstance(part, Mapping | list | tuple):
        return part, {}
    nested = isinstance(part, Mapping)
    plain: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for key, value in part.items() if isinstance(part, Mapping) else enumerate(part):
        inner, own = split(value, f"{path}{_escaped(str(key))}/")
        tensors |= own
        if not (nested and isinstance(value, Tensor | LazyTensor)):
            plain[str(key)] = inner
    return (plain if nested else list(plain.values())), tensors


def join(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `split`."""
    part: Any = copy.deepcopy(plain)
    for path, value in tensors.items():
        *outer, name = map(_unescaped, path.split("/"))
        node: Any = part
        for key in outer:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        node[int(name) if isinstance(node, list) else name] = value
    return part


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _unescaped(key: str) -> str:
    return key.replace("~1", "/").replace("~0", "~")
