"""Checks untrusted input where it enters: names, paths, files, arrays and options."""

from ditmoe.outside.arrays import Arrays, about_array, array_shape, check_items, load_array
from ditmoe.outside.device import device, has_cuda, using_device
from ditmoe.outside.machine import check_memory, memory
from ditmoe.outside.options import TooFewError, check_number, check_numbers, largest_words, shown
from ditmoe.outside.paths import (
    Plain,
    at_home,
    decoded,
    file_name,
    file_names,
    in_python,
    in_utf8,
    is_regular,
    may_hold,
    open_regular,
    parse_json,
    printable,
    read_json,
    read_object,
    read_regular,
    tell,
)
from ditmoe.outside.patience import Patience, patiently
from ditmoe.outside.walk import Entries, Parts, Read, files_below, folders_below, read_entries

__all__ = [
    "Arrays",
    "Entries",
    "Parts",
    "Patience",
    "Plain",
    "Read",
    "TooFewError",
    "about_array",
    "array_shape",
    "at_home",
    "check_items",
    "check_memory",
    "check_number",
    "check_numbers",
    "decoded",
    "device",
    "file_name",
    "file_names",
    "files_below",
    "folders_below",
    "has_cuda",
    "in_python",
    "in_utf8",
    "is_regular",
    "largest_words",
    "load_array",
    "may_hold",
    "memory",
    "open_regular",
    "parse_json",
    "patiently",
    "printable",
    "read_entries",
    "read_json",
    "read_object",
    "read_regular",
    "shown",
    "tell",
    "using_device",
]
