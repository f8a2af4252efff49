"""Full disks: one after the other at each operation and in each file of a command, and real ones that fill up."""

import errno
import os
import random
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from tests.fault_works import Work, contents
from tests.faults import (
    DONE,
    FAILED,
    Arm,
    Scale,
    Shared,
    at_an_operation,
    attempt,
    begin,
    fail,
    undisturbed,
    within_a_file,
)


def each_full_disk(work: Work, home: Path) -> Counter:
    """Let the disk be full at each operation of a work, and before the last byte of each size of file; how it ended.

    Wherever it is: what was there stays, or all of the new is there; who fails names a place below the work's in one
    line; and the next attempt ends as if nothing had happened.
    """
    rng, shared, ends = random.Random(0), Shared(), Counter()
    scale, old, new = undisturbed(work, whole := home / f"{work.name}-whole", rng)
    sizes = sorted({file.stat().st_size - 1 for file in whole.rglob("*") if file.is_file()})
    faults: dict[str, Arm] = {
        f"operation {n}": at_an_operation(fail(errno.ENOSPC), n) for n in range(1, scale.operations + 1)
    }
    faults |= {f"byte {size}": within_a_file(None, size) for size in sizes if size >= 0}
    for name, arm in faults.items():
        place, told = home / f"{work.name}-each", f"{work.name}, disk full at {name}"
        begin(work, place)
        code, printed = attempt(work, place, arm, rng, scale, shared)
        said = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert code in (DONE, FAILED), f"{told}: {code}: {printed[-2000:]}"
        assert len(said) == (code == FAILED), f"{told}: {printed[-2000:]}"
        assert all(str(place) in line for line in said), f"{told}: {said} names nothing that was written"
        work.whole(place, None, old, new)
        ends["failed" if code else "done"] += 1
        _as_if_nothing_had_happened(work, place, rng, scale, new, told)
        shutil.rmtree(place)
    shutil.rmtree(whole)
    return ends


def _as_if_nothing_had_happened(
    work: Work, place: Path, rng: random.Random, scale: Scale, new: object, told: str
) -> None:
    code, printed = attempt(work, place, "none", rng, scale, Shared())
    assert code == DONE, f"{told}: {printed[-2000:]}"
    assert contents(place) == new, f"{told}: {place} is not as if nothing had happened"
    litter = [str(found) for found in place.parent.rglob(".*") if found.name != ".notes"]
    assert not litter, f"{told}: {litter}"


def full_disk(work: Work, home: Path, seed: int, rounds: int = 6) -> None:
    """In a namespace of its own: a real file system of 24 MB that fills up, is emptied again, and becomes read-only."""
    rng, shared, disk = random.Random(seed), Shared(), home / f"{work.name}-disk"
    scale, old, new = undisturbed(work, home / f"{work.name}-whole", rng)
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)
    codes: Counter = Counter()
    for number in range(rounds):
        place = disk / str(number)
        begin(work, place)
        with open(disk / "filler", "wb") as filler:
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            filler.write(bytes(max(0, free - rng.randrange(3 * scale.largest))))
        code, printed = attempt(work, place, "none", rng, scale, shared)
        codes[code] += 1
        assert code in (DONE, FAILED), printed[-2000:]
        mark = work.whole(place, None, old, new)
        (disk / "filler").unlink()
        code, printed = attempt(work, place, "none", rng, scale, shared)
        assert code == DONE, printed[-2000:]
        assert contents(place) == new
        assert not [found for found in disk.rglob(".*") if found.name != ".notes"]
        if number < rounds - 1:
            shutil.rmtree(place)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, printed = attempt(work, place, "none", rng, scale, shared)
    assert code in (DONE, FAILED), printed[-2000:]
    work.whole(place, mark, old, new)
    print(f"{work.name}: {codes[FAILED]} of {rounds} could not write on a full disk; read-only: still whole")
