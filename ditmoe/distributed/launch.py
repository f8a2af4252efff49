"""Processes started by torchrun: who this one is, who speaks, and what is said when one of them dies.

All commands begin here: torch, which takes seconds, is loaded where there are others, or work.
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

LOST = "another process died or no longer answers; what was saved is whole, and the same command goes on from there"
_SIGNS = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset)|broken pipe|timed out|TCPStore", re.IGNORECASE
)


def world() -> int:
    """Number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def processes(timeout: float = 600) -> Iterator[None]:
    """Join the processes that torchrun started, if it did: nccl between GPUs, gloo between CPUs. Only rank 0 prints.

    Args:
        timeout: seconds after which a rank that does not answer is taken for lost. One that dies is noticed at once.
    """
    if world() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if has_cuda():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if has_cuda() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if rank() else nullcontext():
        yield
    dist.destroy_process_group()


def ranks() -> "ditmoe.distributed.ranks.Ranks":
    """All the processes that have joined; one alone without torchrun."""
    import torch.distributed as dist

    from ditmoe.distributed.ranks import ALONE, Ranks

    return Ranks(dist.group.WORLD) if dist.is_initialized() else ALONE


def say(text: str, error: bool = False) -> None:
    """Print one line, whatever is in it; that nobody can read it, or that its disk is full, ends no run."""
    with suppress(OSError):
        print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def tell(line: str) -> None:
    """A line on stderr, of the first process."""
    if rank() == 0:
        say(line, error=True)


def speaks() -> bool:
    """Whether this process is the first to ask, so that what all of them have to say is said once."""
    if world() == 1:
        return True
    import torch.distributed as dist

    try:
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
    """Whether an error says that another rank no longer answers."""
    return world() > 1 and isinstance(error, RuntimeError) and bool(_SIGNS.search(str(error)))
