"""Kill tiny commands hundreds of times, fill their disk, and let writes fail: nothing is lost, and the end is the same.

    python -m tests.faults                      # in small this is a test
    python -m tests.faults --works train --kills 100

Each attempt is a process of its own that does what the same command would (`tests.fault_works`). A kill hits any
moment, any operation on the disk, or the middle of a file. After each, what the command writes must be the old or the
new, whole, and at last equal what nobody disturbed wrote, without litter.
"""

import argparse
import io
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ditmoe.checkpoint import atomic
from ditmoe.config.errors import guard
from tests.fault_works import WORKS, Work, contents

OPERATIONS = (
    "open",
    "os.rename",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
)
DONE, ASKED, FAILED, BROKEN = 0, 130, 2, 1
KILLED = -signal.SIGKILL
REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE, LONGEST = 30, 120
"""Seconds from a request to the end, and of an attempt."""


class Shared:
    """Numbers that all processes of an attempt have in common: operations so far, and whether the fault has struck."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 16)

    def __getitem__(self, index: int) -> int:
        return struct.unpack_from("q", self.memory, 8 * index)[0]

    def __setitem__(self, index: int, value: int) -> None:
        struct.pack_into("q", self.memory, 8 * index, value)


COUNT, STRUCK = 0, 1
Then = Callable[..., None]
"""Told what the operation is on, as the kernel tells it, where that is known."""
Arm = Callable[[Path, random.Random, "Scale", Shared], None]


@dataclass(frozen=True)
class Scale:
    """What an undisturbed attempt is like: its operations on the disk, its largest file, its time."""

    operations: int
    largest: int
    seconds: float


def kill(*_: object) -> None:
    os.killpg(0, signal.SIGKILL)  # with the processes that it started


def fail(code: int) -> Then:
    def then(path: object = None) -> None:
        raise OSError(
            code, os.strerror(code), *([path] if isinstance(path, str | bytes | os.PathLike) else [])
        )

    return then


def at_an_operation(then: Then, number: int | None = None) -> Arm:
    """The n-th operation on the disk does not happen; None: any."""

    def arm(place: Path, rng: random.Random, scale: Scale, shared: Shared) -> None:
        chosen = number or rng.randint(1, scale.operations)

        def hook(event: str, arguments: tuple) -> None:
            if event in OPERATIONS and any(str(place) in str(a) for a in arguments[:2]):
                shared[COUNT] += 1
                if shared[COUNT] == chosen:
                    shared[STRUCK] = 1
                    then(arguments[0])

        sys.addaudithook(hook)

    return arm


def within_a_file(then: Then | None, limit: int | None = None) -> Arm:
    """The kernel writes no byte beyond a size, as a quota does; None: any size."""

    def arm(place: Path, rng: random.Random, scale: Scale, shared: Shared) -> None:
        def beyond(*_: object) -> None:
            shared[STRUCK] = 1
            if then:
                then()

        size = int(scale.largest ** rng.random()) if limit is None else limit  # small files, too
        signal.signal(signal.SIGXFSZ, beyond)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return arm


def nothing(*_: object) -> None:
    pass


FAULTS: dict[str, tuple[Arm, int | None, tuple[int, ...]]] = {
    "kill at any moment": (nothing, signal.SIGKILL, (KILLED,)),
    "kill at an operation": (at_an_operation(kill), None, (KILLED,)),
    "kill within a file": (within_a_file(kill), None, (KILLED,)),
    "SIGTERM": (nothing, signal.SIGTERM, (ASKED, -signal.SIGTERM)),
    "Ctrl-C": (nothing, signal.SIGINT, (ASKED,)),
    "closed terminal": (nothing, signal.SIGHUP, (ASKED, -signal.SIGHUP)),
    "disk full at an operation": (at_an_operation(fail(28)), None, (FAILED,)),
    "write error at an operation": (at_an_operation(fail(5)), None, (FAILED,)),
    "files too large": (within_a_file(None), None, (FAILED,)),
    "none": (at_an_operation(nothing), None, ()),
}
"""What is armed in an attempt, the signal it gets from outside, and how it may end, but for its usual end."""
KILLS = ("kill at any moment", "kill at an operation", "kill at any moment", "kill within a file")
OTHERS = tuple(name for name in FAULTS if name not in (*KILLS, "none"))


def attempt(
    work: Work, place: Path, fault: str | Arm, rng: random.Random, scale: Scale, shared: Shared
) -> tuple[int, str]:
    """Do the work under a fault: exit code, negative for a signal, and what was printed."""
    arm, number, _ = FAULTS[fault] if isinstance(fault, str) else (fault, None, ())
    seed, delay = rng.random(), rng.uniform(0.0, scale.seconds) if number else LONGEST
    shared[COUNT] = shared[STRUCK] = 0
    sys.stdout.flush()
    screen, theirs = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)  # until it is ready for them
    child = os.fork()
    if child == 0:
        try:
            os.close(screen)
            os._exit(_child(work, place, lambda: arm(place, random.Random(seed), scale, shared), theirs))
        finally:
            os._exit(BROKEN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
    with suppress(OSError):  # which the child does itself, unless it has come to an end
        os.setpgid(child, child)  # before anybody kills the group
    os.close(theirs)
    os.set_blocking(screen, False)
    printed, limit, asked = b"", time.monotonic() + delay, number is None
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        printed += _read(screen)
        if time.monotonic() > limit:
            assert not asked, f"{work.name}, {fault}: no end: {printed.decode()[-2000:]}"
            os.killpg(child, number) if number == signal.SIGKILL else os.kill(child, number)
            limit, asked = time.monotonic() + GRACE, True
        time.sleep(0.001)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    printed += _read(screen)
    os.close(screen)
    return code, printed.decode()


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 1 << 16)
    except BlockingIOError:
        return b""


def _child(work: Work, place: Path, arm: Callable[[], None], screen: int) -> int:
    os.setpgid(0, 0)
    os.dup2(screen, 1)
    os.dup2(screen, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))  # not pytest's
    torch.set_num_threads(1)
    atomic._cleared.cache_clear()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
        arm()
        guard(lambda: work.run(place))
        signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)  # it is done
        return DONE
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else BROKEN
    except KeyboardInterrupt:
        return ASKED
    except BaseException:
        traceback.print_exc()
        return BROKEN
    finally:
        sys.stdout.flush()


def begin(work: Work, place: Path) -> None:
    with redirect_stdout(io.StringIO()):
        work.begin(place)


def undisturbed(work: Work, place: Path, rng: random.Random) -> tuple[Scale, object, object]:
    """What an attempt is like, what was there before, and what was made of it."""
    shared, largest = Shared(), 1
    begin(work, place)
    before = contents(place)
    start = time.monotonic()
    code, printed = attempt(work, place, "none", rng, Scale(1, 1, 1.0), shared)
    assert code == DONE, printed[-2000:]
    seconds = time.monotonic() - start
    largest = max(file.stat().st_size for file in place.rglob("*") if file.is_file())
    return Scale(shared[COUNT], largest, 1.2 * seconds), before, contents(place)


def suite(work: Work, home: Path, wanted: list[str], seed: int = 0) -> Counter:
    """Do the work until all these faults have struck; how often which did."""
    rng, counts, shared = random.Random(seed), Counter(), Shared()
    scale, old, new = undisturbed(work, home / f"{work.name}-whole", rng)
    rng.shuffle(wanted)
    while wanted:
        counts["runs"] += 1
        place, mark = home / f"{work.name}-{counts['runs']}", None
        begin(work, place)
        while wanted:
            fault = wanted[-1]
            code, printed = attempt(work, place, fault, rng, scale, shared)
            assert code in (DONE, *FAULTS[fault][2]), f"{work.name}, {fault}: {code}: {printed[-2000:]}"
            said = [line for line in printed.splitlines() if line.startswith("error: ")]
            assert len(said) == (code == FAILED), f"{work.name}, {fault}: {printed[-2000:]}"
            mark = work.whole(place, mark, old, new)
            if shared[STRUCK] or code != DONE:
                counts[fault] += 1
                wanted.pop()
            if code == DONE:
                break
        code, printed = attempt(work, place, "none", rng, scale, shared)
        assert code == DONE, f"{work.name}: {printed[-2000:]}"
        now = contents(place)
        other = sorted(name for name in {*now, *new} if now.get(name) != new.get(name))
        steps = [name for name in new if "/step-" in name]
        if steps:  # asked to stop between two saves, a run keeps that step as its last but one
            newest = max(re.search(r"/step-\d+/", name)[0] for name in steps)  # type: ignore[index]
            other = [name for name in other if "/step-" not in name or newest in name]
        assert not other, f"{work.name}: {place} is not as if nothing had happened: {', '.join(other[:5])}"
        litter = [str(found) for found in place.parent.rglob(".*") if found.name != ".notes"]
        assert not litter, f"{work.name}: {litter}"
        shutil.rmtree(place)
    return counts


def main() -> None:
    """The whole of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--kills", type=int, default=20, help="of each work")
    parser.add_argument("--others", type=int, default=2, help="of each other fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", help=argparse.SUPPRESS)
    parser.add_argument("--each", action="store_true", help="a full disk at each operation and in each file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from tests.full_disks import each_full_disk, full_disk

    if options.each:
        for name in options.works:
            with tempfile.TemporaryDirectory() as folder:
                ends = each_full_disk(WORKS[name](Path(folder)), Path(folder))
            print(f"{name}: disk full, {ends['failed']} failed in one line, {ends['done']} done", flush=True)
        return
    if options.within:
        for name in options.works:
            (home := Path(options.within) / name).mkdir()
            full_disk(WORKS[name](home), home, options.seed)
        return
    for name in options.works:
        with tempfile.TemporaryDirectory() as folder:
            wanted = [KILLS[i % len(KILLS)] for i in range(options.kills)] + options.others * list(OTHERS)
            counts = suite(WORKS[name](Path(folder)), Path(folder), wanted, options.seed)
        print(
            f"{name}: " + ", ".join(f"{count} {fault}" for fault, count in sorted(counts.items())), flush=True
        )
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "tests.faults", "--within", folder, "--seed", str(options.seed)]
        if subprocess.run(["unshare", "-Urm", *line, "--works", *options.works]).returncode:
            print("full disk: FAILED, or this machine lets nobody mount (unshare -Urm)")
            sys.exit(1)


if __name__ == "__main__":
    main()
