"""Malformed files for every reader: a clear line or a result, never a stack trace, a hang, or memory without end.

    python -m tests.fuzz --inputs 10000          # in small this is a test

Valid files are cut, flipped, spliced, and their numbers and JSON replaced by absurd ones; checkpoints are sealed again
after that, as a stranger would. What was made to do harm (`tests.hostile`) is read as it is. Each batch of inputs is
read in a process of its own with a limit on its memory and on the time of each input; there, no program may be started,
no socket opened, and nothing written or removed outside the folder of the input.
"""

import argparse
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modalities.shared import isolation
from tests.fuzz_spoiling import malformed, spoil_file, spoil_some_file

MEMORY = 2**30  # beyond what a process has when it begins
SECONDS = 8.0  # of the processor, for one input
PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.truncate": 1, "os.chmod": 1,
           "os.chown": 1, "os.utime": 1}  # fmt: skip
"""Events of the audit, and how many of their arguments are paths."""
REFUSALS = (ValueError, OSError)


@dataclass(frozen=True)
class Reader:
    """A way to read: from one file with an ending, or from a folder of which one file is malformed.

    Attributes:
        share: of the inputs that a quick reader gets.
        hostile: instead of these, makers of inputs and who reads them, one after another.
    """

    name: str
    seeds: list[Path]
    read: Callable[[Path], Any]
    spoil: Callable[[Path, random.Random], None] | None = None
    share: float = 1.0
    hostile: Sequence[tuple[Callable[[Path], Path], Callable[[Path], Any]]] = ()


def readers(place: Path) -> list[Reader]:
    """Every reader, with valid files to begin from."""
    from tests import fuzz_seeds

    return fuzz_seeds.readers(place) + harmful()


def harmful() -> list[Reader]:
    """Every kind of what was made to do harm."""
    from tests.hostile import hostile

    return [Reader(f"hostile {kind}", [], lambda _: None, hostile=made) for kind, made in hostile().items()]


def strike(reader: Reader, number: int, place: Path, rng: random.Random) -> Any:
    """Read one malformed input."""
    if reader.hostile:
        make, read = reader.hostile[number % len(reader.hostile)]
        return read(make(place))
    seed = rng.choice(reader.seeds)
    target = place / seed.name
    if seed.is_dir():
        shutil.copytree(seed, target)
        (reader.spoil or spoil_some_file)(target, rng)
    else:
        shutil.copy(seed, target)
        spoil_file(target, rng) if rng.random() < 0.9 else target.write_bytes(
            malformed(seed.read_bytes(), rng, rng.choice(reader.seeds).read_bytes())
        )
    return reader.read(target)


def fuzz(reader: Reader, inputs: int, seed: int) -> tuple[Counter, list[str]]:
    """Outcomes by kind, and what went wrong: which input of which reader, and how."""
    outcomes: Counter = Counter()
    findings: list[str] = []
    done = 0
    while done < inputs:
        with tempfile.TemporaryDirectory() as place:
            end, last = _batch(reader, range(done, inputs), seed, Path(place), outcomes, findings)
        if end:
            findings.append(f"{reader.name} #{seed}:{last}: the process {end}")
        done = last + 1
    return outcomes, findings


def _batch(
    reader: Reader, numbers: range, seed: int, place: Path, outcomes: Counter, findings: list[str]
) -> tuple[str, int]:
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receive)
            _read_all(reader, numbers, seed, place, send)
            os._exit(0)
        finally:
            os._exit(3)
    os.close(send)
    last, end, started = numbers[0], "", time.monotonic()
    buffer = b""
    os.set_blocking(receive, False)
    while True:
        try:
            part = os.read(receive, 1 << 16)
            if not part:
                break
            buffer += part
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                number, kind, text = json.loads(line)
                last, started = number, time.monotonic()
                if kind == "begin":
                    continue
                outcomes[kind] += 1
                if kind not in ("read", "refused"):
                    findings.append(f"{reader.name} #{seed}:{number}: {text}")
        except BlockingIOError:
            if time.monotonic() - started > 20 * SECONDS:
                os.kill(child, signal.SIGKILL)
                end = "hung"
                break
            time.sleep(0.002)
    os.close(receive)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code and not end:
        end = f"died of signal {-code}" if code < 0 else f"ended with {code}"
    return end, last if end else numbers[-1]


class Hang(BaseException):
    """An input took too long."""


def _read_all(reader: Reader, numbers: range, seed: int, place: Path, send: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # What is made to do harm is measured: a limit would turn what it asks for into an error that readers catch.
    most = size + (3 * MEMORY if reader.hostile else MEMORY)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    deeds = watched(place)

    def late(*_: Any) -> None:
        raise Hang(f"took more than {SECONDS} s of the processor")

    def say(*line: Any) -> None:
        os.write(send, json.dumps(line).encode() + b"\n")

    signal.signal(signal.SIGPROF, late)
    for number in numbers:
        rng = random.Random(f"{seed} {reader.name} {number}")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        say(number, "begin", "")
        deeds.clear()
        before = peak(reset=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            strike(reader, number, place, rng)
            outcome, text = "read", ""
        except REFUSALS:
            outcome, text = "refused", ""
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
            outcome, text = "wrong", f"{type(error).__name__}: {str(error)[:200]!r} at {where}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if reader.hostile and (taken := peak() - before) > MEMORY:
            outcome, text = "wrong", f"took {taken / 2**30:.1f} GiB"
        if deeds:
            outcome, text = "wrong", f"did {deeds[0]}"
        say(number, outcome, text)


def peak(reset: bool = False) -> int:
    """Bytes of memory that this process had at most, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


def watched(place: Path) -> list[str]:
    """From now on, what this process does to others is refused, and written down in this list."""
    deeds: list[str] = []
    sys.dont_write_bytecode = True
    allowed = (str(place), os.path.realpath(place), os.devnull, "/proc/self/clear_refs")

    def elsewhere(path: Any, folder: Any = -1) -> bool:
        if isinstance(path, int):
            return False
        above = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else ""
        return not os.path.join(above, os.fsdecode(path)).startswith(allowed)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        done = event in PROGRAMS or event.startswith("socket.")
        if event == "ctypes.dlopen":
            opened = str(arguments[0] or sys.prefix)  # None is what runs
            done = not opened.startswith((sys.prefix, sys.base_prefix))
        elif event == "subprocess.Popen":  # what may be endless is tried in a process of its own
            done = arguments[1][:4] != [sys.executable, "-P", "-c", isolation.SERVE]
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            done = elsewhere(arguments[0])
        elif event in CHANGES:
            done = any(elsewhere(path, arguments[-1]) for path in arguments[: CHANGES[event]])
        if done:
            deeds.append(f"{event} {arguments!r}"[:200])
            raise RuntimeError(deeds[-1])

    sys.addaudithook(hook)
    return deeds


def main() -> None:
    """The whole of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    total: Counter = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        known = harmful() if options.only.startswith("hostile") else readers(Path(place))
        chosen = [reader for reader in known if options.only in reader.name]
        each = options.inputs / sum(reader.share for reader in chosen)
        for reader in chosen:
            count = len(reader.hostile) or math.ceil(each * reader.share)
            outcomes, findings = fuzz(reader, count, options.seed)
            print(f"{reader.name:24} {dict(outcomes)}", flush=True)
            for finding in findings:
                print(f"  {finding}", flush=True)
            total, wrong = total + outcomes, wrong + findings
    print(
        f"{sum(total.values())} inputs, {total['read']} read, {total['refused']} refused, {len(wrong)} wrong"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
