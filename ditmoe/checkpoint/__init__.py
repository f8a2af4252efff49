"""Checkpoints that are written atomically, verified by digests and never execute code; and atomic writing of files."""

from typing import TYPE_CHECKING

from ditmoe.checkpoint.atomic import digest, replacing
from ditmoe.checkpoint.places import FOLDER, exists, place, unless_dropped
from ditmoe.lazy import lazily

if TYPE_CHECKING:
    from ditmoe.checkpoint.lazy_tensors import LazyTensor, in_memory, open_file
    from ditmoe.checkpoint.saver import Saver
    from ditmoe.checkpoint.store import (
        Checkpoint,
        check_holds_no_link,
        check_own,
        exclusive_lock,
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
    "check_holds_no_link",
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
    "unless_dropped",
]
__getattr__ = lazily(  # torch
    __name__,
    {
        "ditmoe.checkpoint.lazy_tensors": ["LazyTensor", "in_memory", "open_file"],
        "ditmoe.checkpoint.saver": ["Saver"],
        "ditmoe.checkpoint.store": [
            "Checkpoint",
            "check_holds_no_link",
            "check_own",
            "exclusive_lock",
            "fill",
            "find",
            "keep",
            "load",
            "restate",
            "save",
        ],
    },
)
