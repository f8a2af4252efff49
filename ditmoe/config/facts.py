"""Facts of the data that a checkpoint stores: nested tensors and plain values, defined by the modality."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ditmoe.checkpoint import manifest
from ditmoe.checkpoint.lazy_tensors import SAFETENSORS
from ditmoe.config.plain_values import check_plain
from ditmoe.modality import Modality
from ditmoe.outside import printable

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SAFETENSORS.values()}
"""Types of tensors that a file can hold, by name."""
LARGEST = 2**27
"""Bound on the elements of all tensors together, when they are allocated from an untrusted description."""
LONGEST_CLASS = 1000
"""Longest class name in characters; folder names have at most 255, ImageNet's names with all synonyms 100 or 200."""


def facts_of(modality: Modality) -> dict[str, Any]:
    """A modality's facts as a checkpoint would return them: lists for tuples, and copies of tensors on the CPU.

    Raises:
        ValueError: one line, for what a checkpoint cannot hold: other objects (such as NumPy's numbers), keys that are
            not strings, numbers that are not finite, class names that are too long.
    """
    data_facts, what = modality.data_facts(), f"data_facts() of {modality.name}"
    if not isinstance(data_facts, Mapping):
        raise ValueError(f"{what} must be a dict, got {type(data_facts).__name__}")
    _check(data_facts, "", what)
    plain, tensors = manifest.split(data_facts)
    check_known(plain, what)
    return manifest.join(plain, {path: value.cpu().clone() for path, value in tensors.items()})


def check_known(plain: Any, what: str) -> None:
    """Check the plain values of facts by `check_plain`, and the length of class names.

    Raises:
        ValueError: naming the first invalid entry.
    """
    check_plain(plain, what)
    names = plain.get("classes") if isinstance(plain, dict) else None
    for index, name in enumerate(names if isinstance(names, list) else ()):
        if isinstance(name, str) and len(name) > LONGEST_CLASS:
            raise ValueError(
                f"{what} must have class names of at most {LONGEST_CLASS} characters, got {len(name)} as "
                f"classes.{index}: {printable(name[:40])}..."
            )


def described(data_facts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts for JSON: plain values, and shape and type of each tensor by its path, from which `blank` makes zeros."""
    plain, tensors = manifest.split(data_facts)
    kinds = {path: [list(t.shape), str(t.dtype).removeprefix("torch.")] for path, t in tensors.items()}
    return plain, kinds


def blank(kinds: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of zeros, by path, of the shapes and types that `described` returned.

    Raises:
        ValueError: if a shape or type is invalid, or all tensors together have more than `LARGEST` elements.
    """
    total = 0
    for path, kind in kinds.items():
        shape, dtype = kind if isinstance(kind, list) and len(kind) == 2 else (None, None)
        if not isinstance(shape, list) or not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"the tensor {path} of the facts must have a shape and a type, got {kind!r}")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(
                f"the tensor {path} of the facts must have a shape of whole numbers, got {shape}"
            )
        if (total := total + math.prod(shape)) > LARGEST:
            raise ValueError(
                f"the tensors of the facts must have at most {LARGEST} elements together, got more"
            )
    return {path: torch.zeros(shape, dtype=DTYPES[dtype]) for path, (shape, dtype) in kinds.items()}


def _check(value: Any, place: str, what: str) -> None:
    """Check keys and tensors; `check_plain` checks everything else."""
    if isinstance(value, Tensor) and (value.dtype not in DTYPES.values() or value.layout != torch.strided):
        raise ValueError(
            f"{what} must hold dense tensors of {', '.join(DTYPES)}, got {value.dtype} as {place}"
        )
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if type(key) is not str or (not place and key == "__metadata__"):  # safetensors files reserve it
                raise ValueError(f"{what} must have names as keys, got {key!r}")
            _check(inner, f"{place}.{key}".lstrip("."), what)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check(inner, f"{place}.{index}", what)
