"""How exactly a run computes: the autocast type, and whether it does the same twice."""

import os

import torch


def repeat_exactly() -> None:
    """Let all that follows do the same twice on the same machine, on a GPU too, at some cost there.

    To be called before the first product on a GPU: cuBLAS reads its workspace then. An operation that cannot is an
    error of PyTorch's. On a CPU runs repeat without it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def choose_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of "auto", "fp32" or "bf16"; None for plain float32."""
    gains = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        gains = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and gains) else None
