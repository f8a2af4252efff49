"""How a run computes, see `options.Computing`: in which type, twice the same, in little memory, and fast on a CPU."""

import ctypes
import os
import platform
from functools import partial

import torch
import torch.utils.checkpoint

from ditmoe.model import DiTMoE

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt."""
KEPT = 2**30
"""Bytes of freed memory, at the most."""
LARGEST = 2**25
"""Bytes of a tensor whose memory is kept; the most that every version of glibc takes."""


def choose_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of "auto", "fp32" or "bf16"; None for plain float32."""
    gains = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        gains = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and gains) else None


def repeat_exactly() -> None:
    """Let all that follows do the same twice on the same machine, on a GPU too, at some cost there.

    To be called before the first product on a GPU: cuBLAS reads its workspace then. An operation that cannot is an
    error of PyTorch's. On a CPU runs repeat without it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def recompute_blocks(model: DiTMoE) -> None:
    """Let blocks keep their inputs alone, and compute what is within them again in the backward pass."""
    for block in model.blocks:
        block.forward = partial(torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=False)


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
