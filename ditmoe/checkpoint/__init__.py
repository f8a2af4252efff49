"""Checkpoints that are never half-written, prove whole and never execute code; and files that are whole or not
there.
"""

from ditmoe.checkpoint.atomic import digest, replacing
from ditmoe.checkpoint.lazy_tensors import LazyTensor, in_memory, open_file
from ditmoe.checkpoint.saver import Saver
from ditmoe.checkpoint.store import (
    FOLDER,
    Checkpoint,
    check_own,
    exclusive_lock,
    exists,
    fill,
    find,
    keep,
    load,
    place,
    restate,
    save,
)

__all__ = [
    "FOLDER",
    "Checkpoint",
    "LazyTensor",
    "Saver",
    "check_own",
    "digest",
    "exclusive_lock",
    "exists",
    "fill",
    "find",
    "in_memory",
    "keep",
    "load",
    "open_file",
    "place",
    "replacing",
    "restate",
    "save",
]
