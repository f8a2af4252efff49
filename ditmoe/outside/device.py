"""The device of tensors, decided here for every command and every metric."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ditmoe.outside.paths import printable, tell

if TYPE_CHECKING:
    import torch

KINDS = ("cpu", "cuda", "mps", "xpu")
AUTO = "auto"
NUMBER = "(0|[1-9][0-9]?)"
"""Device index as torch parses it: ASCII, without leading zeros; from 128 on, torch wraps it to another device."""
_wanted = [AUTO]  # the last one counts, also in threads; `using_device` removes its own


@contextmanager
def using_device(word: Any) -> Iterator[None]:
    """Within this context, `device` returns the device of this name: auto, cpu, cuda, cuda:1, mps or xpu.

    Raises:
        ValueError: for another name, or a device that does not exist. `auto` and `cpu` do not import torch.
    """
    word = check_device(word)
    if word not in (AUTO, "cpu"):
        found = _there(word)
        if found.type != "cuda":
            tell(f"note: device={word}: no test has run there; experts run one after the other, as on a CPU")
        elif found.index is not None:
            import torch

            torch.cuda.set_device(found)  # kernels are launched on the current device
    _wanted.append(word)
    try:
        yield
    finally:
        _wanted.pop()


def check_device(word: Any) -> str:
    """The same word; ValueError unless it names a device."""
    if isinstance(word, str) and re.fullmatch(rf"{AUTO}|cpu|({'|'.join(KINDS[1:])})(:{NUMBER})?", word):
        return word
    kinds = ", ".join([AUTO, *KINDS])
    raise ValueError(
        f"device must be one of {kinds}, or one with an index such as cuda:1, got {printable(word)}"
    )


def device() -> "torch.device":
    """The requested device; by default the accelerator that torch finds, else the CPU.

    MPS is used only if requested: it has no float64, in which averages and positions are computed.
    """
    import torch

    if _wanted[-1] != AUTO:
        return _there(_wanted[-1])
    kind = "cuda" if torch.cuda.is_available() else _accelerator()
    return torch.device("cpu" if kind == "mps" else kind)


def has_cuda() -> bool:
    """Whether `device` is a CUDA device."""
    return device().type == "cuda"


def _accelerator() -> str:
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if found is None else found.type


def _there(word: str) -> "torch.device":
    import torch

    asked = torch.device(word)
    if asked.type == "cpu":
        return asked
    number = {
        "cuda": lambda: torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": lambda: int(torch.backends.mps.is_available()),
        "xpu": lambda: torch.xpu.device_count() if torch.xpu.is_available() else 0,
    }[asked.type]()
    if (asked.index or 0) >= number:
        seen = f"{number} of that kind" if number else f"none of that kind (torch {torch.__version__})"
        raise ValueError(
            f"device must be one that torch sees, got {word}: it sees {seen}; device=cpu runs anywhere"
        )
    return asked
