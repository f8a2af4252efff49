"""How a run computes, see `options.Computing`: precision, determinism, recomputation, and memory reuse on a CPU."""

import ctypes
import os
import platform
from functools import partial

import torch
import torch.utils.checkpoint

from ditmoe.model import DiTMoE

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
KEPT = 2**30
"""Most bytes of freed memory to keep."""
LARGEST = 2**25
"""Largest allocation whose memory is kept, in bytes; the maximum that every version of glibc accepts."""


def choose_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype for "auto", "fp32" or "bf16"; None for plain float32."""
    gains = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        gains = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and gains) else None


def repeat_exactly() -> None:
    """Make computations reproducible on the same machine, including on a GPU, at some cost there.

    Call it before the first matrix product on a GPU, when cuBLAS reads its workspace setting. PyTorch raises an error
    for operations without a deterministic implementation. On a CPU runs are reproducible without it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def recompute_blocks(model: DiTMoE) -> None:
    """Activation checkpointing: blocks save only their inputs, and are recomputed in the backward pass."""
    for block in model.blocks:
        block.forward = partial(torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=False)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory instead of returning it to the system.

    Each step on a CPU allocates and frees the same tensors, and the system has to clear every returned page again. Does
    nothing if the C library is not glibc, or if the environment sets its options.
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if told or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(MMAP_THRESHOLD, LARGEST)
    mallopt(TRIM_THRESHOLD, KEPT)
