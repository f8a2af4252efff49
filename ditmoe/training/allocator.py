"""Memory that a step freed stays at hand for the next one."""

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt."""
KEPT = 2**30
"""Bytes, at the most."""
LARGEST = 2**25
"""Bytes of a tensor whose memory is kept; the most that every version of glibc takes."""


def keep_freed_memory() -> None:
    """Let the C library keep memory that is freed, where it would give it back to the system.

    A step on a CPU makes and frees the same tensors each time, and the system has to clear each page anew that it was
    given back. It does nothing where the C library is not glibc, or where the environment sets its options.
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if told or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(MMAP_THRESHOLD, LARGEST)
    mallopt(TRIM_THRESHOLD, KEPT)
