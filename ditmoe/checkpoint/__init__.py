"""Checkpoints that are never half-written, prove whole and never execute code; and files that are whole or not
there.
"""

from ditmoe.checkpoint.atomic import digest, replacing
from ditmoe.checkpoint.lazy_tensors import Stored, in_memory, open_file
from ditmoe.checkpoint.saver import Saver
from ditmoe.checkpoint.store import FOLDER, Checkpoint, alone, exists, fill, find, keep, load, restate, save

__all__ = [
    "FOLDER",
    "Checkpoint",
    "Saver",
    "Stored",
    "alone",
    "digest",
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
