"""Checkpoints that are never half-written, prove whole and never execute code; and files that are whole or not
there.
"""

from ditmoe.checkpoint.atomic import digest, replacing
from ditmoe.checkpoint.lazy_tensors import LazyTensor, in_memory, open_file
from ditmoe.checkpoint.saver import Saver
from ditmoe.checkpoint.store import (
    FOLDER,
    Checkpoint,
    exclusive_lock,
    exists,
    fill,
    find,
    keep,
    load,
    restate,
    save,
)

__all__ = [
    "FOLDER",
    "Checkpoint",
    "LazyTensor",
    "Saver",
    "digest",
    "exclusive_lock",
    "exists",
    "fill",
    "find",
    "in_memory",
    "keep",
    "load",
    "open_file",
    "replacing",
    "restate",
    "save",
]
