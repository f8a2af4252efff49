"""Processes started by torchrun: rank and world size, output of one process for all, and detection of lost processes.

Every command imports this module, so torch, which takes seconds to load, is imported only within functions.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from ditmoe.outside import has_cuda, printable

if TYPE_CHECKING:
    import ditmoe.distributed.ranks

LOST = (
    "another process died or no longer answers; saved checkpoints are complete, and the same command resumes"
)
_SIGNS = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset)|broken pipe|timed out|TCPStore", re.IGNORECASE
)


def world() -> int:
    """Number of processes that torchrun started; 1 without it."""
    return _told("WORLD_SIZE", 1)


def rank() -> int:
    """Rank of this process; 0 if it is the only one."""
    return 0 if world() == 1 else _told("RANK", 0)


def _told(name: str, least: int) -> int:
    """A number that torchrun sets in the environment; the least one if it is not set.

    Raises:
        ValueError: with one line, if the variable is not such a number.
    """
    text = os.environ.get(name, str(least))
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
        raise ValueError(
            f"the environment variable {name} must be a whole number of at least {least}, as torchrun sets it, "
            f"or not be set, got {printable(text)!r}"
        )
    return int(text)


@contextmanager
def processes(timeout: float = 600) -> Iterator[None]:
    """Within this context the processes that torchrun started form a group; without torchrun it does nothing.

    The backend is nccl for GPUs and gloo for CPUs. Only rank 0 prints to stdout.

    Args:
        timeout: seconds after which a rank that does not answer counts as lost. One that dies is noticed at once.
    """
    if world() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    first = rank() == 0
    if has_cuda():
        torch.cuda.set_device(_told("LOCAL_RANK", 0))
    backend = "cpu:gloo,cuda:nccl" if has_cuda() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    with open(os.devnull, "w") as nowhere, nullcontext() if first else redirect_stdout(nowhere):
        yield
    dist.destroy_process_group()


def ranks() -> "ditmoe.distributed.ranks.Ranks":
    """All processes of the group; a single one without torchrun."""
    import torch.distributed as dist

    from ditmoe.distributed.ranks import ALONE, Ranks

    return Ranks(dist.group.WORLD) if dist.is_initialized() else ALONE


def say(text: str, error: bool = False) -> None:
    """Print one line of any text. Errors of the output, such as a closed pipe or a full disk, are ignored."""
    with suppress(OSError):
        print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def tell(line: str) -> None:
    """Print a line to stderr, on rank 0 only."""
    if rank() == 0:
        say(line, error=True)


def speaks() -> bool:
    """Whether this process is the first to call this, so that an error of all processes is printed once."""
    try:
        if world() == 1:
            return True
        import torch.distributed as dist

        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=5),
        )
        turn = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"ditmoe/spoken/{turn}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another rank no longer answers."""
    return world() > 1 and isinstance(error, RuntimeError) and bool(_SIGNS.search(str(error)))
