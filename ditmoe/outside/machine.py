"""The memory available to this process, checked before large allocations."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

LARGEST_FILE = 2**16  # bytes read from a file of the kernel


def memory(root: Path = Path("/")) -> float:
    """Bytes that this process can use: the machine's memory, or what remains of its control groups if that is less.

    A container or a cluster job has a limit of its own (Linux cgroups, version 2 or 1, including all parent groups),
    and is killed without an error when it exceeds it. Page cache, which the kernel can reclaim, counts as free.

    Args:
        root: of the file system whose /proc and /sys are read.
    """
    return min([_physical(), *(left for group in _groups(root) if (left := _left(*group)) is not None)])


def check_memory(needed: float, what: str, advice: str = "") -> None:
    """Raise if something does not fit into memory, before anything is allocated.

    Args:
        needed: lower bound in bytes.
        what: what needs them, in the plural.
        advice: how to need less.

    Raises:
        ValueError: one line.
    """
    if needed > (there := memory()):
        tail = f": {advice}" if advice else ""
        raise ValueError(
            f"{what} need more than {_in_gb(needed)} GB, this machine has {_in_gb(there)} GB{tail}"
        )


def _in_gb(number: float) -> str:
    number = min(number, 1e300) / 1e9  # `number` may be an integer that exceeds any float
    return f"{number:.1f}" if number < 10 else f"{number:.0f}" if number < 1e9 else f"{number:.0e}"


def _physical() -> float:
    """Bytes of physical memory; infinity if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return math.inf


def _groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Folders of this process's control groups, from its own to the root, and the names of limit, usage and page cache.

    Some folders may not exist: in a container the path may be the host's, and only the root group is visible.
    """
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if number == "0":
            places, names = [mount, mount / "unified"], ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            places = [mount / "memory"]
        else:
            continue
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for place in places:
            for depth in range(len(parts), -1, -1):
                yield place.joinpath(*parts[:depth]), *names


def _left(folder: Path, limit: str, use: str, cache: str) -> float | None:
    """Bytes that a group may still allocate; None if it has no limit."""
    most, used = _read(folder / limit).strip(), _read(folder / use).strip()
    if not most.isdigit():  # "max", or no such group
        return None
    found = re.search(rf"^{cache} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
    kept = int(found[1]) if found else 0
    return max(0, int(most) - max(0, (int(used) if used.isdigit() else 0) - kept))


def _read(file: Path) -> str:
    """The text of a kernel file, whose size is not known in advance; "" if there is none."""
    try:
        with open(file, "rb") as stream:
            return stream.read(LARGEST_FILE).decode(errors="replace")
    except OSError:
        return ""
