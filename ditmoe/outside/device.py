"""Where tensors are computed: one place decides, for every command and every metric."""

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
"""As torch reads it: ASCII, without a zero in front; from 128 on it becomes another device's."""
_wanted = [AUTO]  # the last one counts, also in threads; `using_device` takes its own away again


@contextmanager
def using_device(word: Any) -> Iterator[None]:
    """Within it `device` is the one of this word: auto, or cpu, cuda, cuda:1, mps, xpu.

    Raises:
        ValueError: for another word, or one that names what is not there. `auto` and `cpu` are answered without torch.
    """
    word = check_device(word)
    if word not in (AUTO, "cpu"):
        found = _there(word)
        if found.type != "cuda":
            tell(f"note: device={word}: no test has run there; experts run one after the other, as on a CPU")
        elif found.index is not None:
            import torch

            torch.cuda.set_device(found)  # kernels are launched on the current one
    _wanted.append(word)
    try:
        yield
    finally:
        _wanted.pop()


def check_device(word: Any) -> str:
    """Raises ValueError unless it is a word for a device."""
    if isinstance(word, str) and re.fullmatch(rf"{AUTO}|cpu|({'|'.join(KINDS[1:])})(:{NUMBER})?", word):
        return word
    kinds = ", ".join([AUTO, *KINDS])
    raise ValueError(
        f"device must be one of {kinds}, or one by its number such as cuda:1, got {printable(word)}"
    )


def device() -> "torch.device":
    """The one that was asked for; by default the accelerator that torch finds, and a CPU where there is none.

    MPS is taken only where it is asked for: it has no float64, which averages and positions are computed in.
    """
    import torch

    if _wanted[-1] != AUTO:
        return _there(_wanted[-1])
    kind = "cuda" if torch.cuda.is_available() else _accelerator()
    return torch.device("cpu" if kind == "mps" else kind)


def has_cuda() -> bool:
    """Whether what is computed is computed on CUDA."""
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
