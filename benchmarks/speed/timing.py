"""How benchmarks take time: interleaved variants, in alternating order, so that all see the same machine."""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch

Seconds = dict[str, list[float]]


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    clock: Callable[[torch.device], float] | None = None,
) -> Seconds:
    """Seconds of each variant in each round, after one round to warm up.

    On a CPU seconds of the processor, so that other work on the machine counts little; on a GPU seconds of the wall;
    or what `clock` says.
    """
    clock = clock or now
    seconds: Seconds = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name in list(variants)[:: 1 if turn % 2 else -1]:
            start = clock(device)
            variants[name]()
            if turn:
                seconds[name].append(clock(device) - start)
    return seconds


def now(device: torch.device) -> float:
    """The clock of a device, when it has done all that it was told."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def ratio(seconds: Seconds, name: str, base: str) -> float:
    """Median over the rounds of how much longer than `base` it took."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def table(seconds: Seconds, base: str) -> list[str]:
    """One line for each variant: median in milliseconds, ratio to `base`, and its range over the rounds."""
    lines = []
    for name, values in seconds.items():
        each = [a / b for a, b in zip(values, seconds[base], strict=True)]
        lines.append(
            f"  {name:30s}{1e3 * statistics.median(values):10.1f} ms   x {ratio(seconds, name, base):5.3f}"
            f"   ({min(each):.3f} .. {max(each):.3f})"
        )
    return lines


def keep_memory() -> None:
    """Never give memory back to the system: on Linux fresh pages cost up to a fifth of a large step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_max = -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
