"""Kill a tiny run a hundred times, fill its disk, and let its writes fail: nothing is lost, and the curve is the same.

    python -m tests.faults --kills 100          # about ten minutes on one core; in small this is a test

Each attempt is a process of its own that goes on as the same command would. Half of the kills hit a checkpoint that is
being written: at a random one of its operations on the disk, or in the middle of a file. After each, the newest
checkpoint that was whole before must still be found or a newer one, and all of it must load.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ditmoe import checkpoint
from ditmoe.train import resume
from tests.test_trainer import same, trainer

OPTIONS = ("trainer.steps=36", "trainer.save_every=2", "trainer.log_every=3", "trainer.accumulate=2")
OPERATIONS = (
    "open",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
)
DONE, ASKED, FAILED, BROKEN = 0, 130, 3, 1
GRACE = 30
Arm = Callable[[Path, random.Random], None]


def killed(folder: Path) -> None:
    struck(folder).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def failed(folder: Path) -> None:
    struck(folder).touch()
    raise OSError(5, "Input/output error")


def full(folder: Path) -> None:
    struck(folder).touch()
    raise OSError(28, "No space left on device")


def struck(folder: Path) -> Path:
    """Exists once a fault has."""
    return folder.with_suffix(".struck")


def at_an_operation(then: Callable[[Path], None]) -> Arm:
    """The n-th operation that a checkpoint needs on the disk does not happen."""

    def arm(folder: Path, rng: random.Random) -> None:
        left = rng.randrange(1, 150)
        place = str(folder / checkpoint.FOLDER)

        def hook(event: str, arguments: tuple) -> None:
            nonlocal left
            if event in OPERATIONS and any(place in str(a) for a in arguments[:2]):
                left -= 1
                if left == 0:
                    then(folder)

        sys.addaudithook(hook)

    return arm


def within_a_file(then: Callable[[Path], None]) -> Arm:
    """The n-th file of tensors is written up to a random byte."""

    def arm(folder: Path, rng: random.Random) -> None:
        left, whole = rng.randrange(1, 13), checkpoint.save_file

        def torn(tensors: dict, file: Path) -> None:
            nonlocal left
            whole(tensors, file)
            left -= 1
            if left == 0:
                os.truncate(file, rng.randrange(file.stat().st_size))
                then(folder)

        checkpoint.save_file = torn

    return arm


def files_too_large(folder: Path, rng: random.Random) -> None:
    """The kernel refuses files beyond a random size, as a quota does."""
    size = rng.randrange(1, 300_000)
    struck(folder).touch()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def nothing(folder: Path, rng: random.Random) -> None:
    pass


FAULTS: dict[str, tuple[Arm, int | None]] = {
    "kill at any moment": (nothing, signal.SIGKILL),
    "kill at an operation of a checkpoint": (at_an_operation(killed), None),
    "kill within a file": (within_a_file(killed), None),
    "SIGTERM": (nothing, signal.SIGTERM),
    "Ctrl-C": (nothing, signal.SIGINT),
    "disk full at an operation": (at_an_operation(full), None),
    "disk full within a file": (within_a_file(full), None),
    "write error at an operation": (at_an_operation(failed), None),
    "files too large": (files_too_large, None),
    "none": (nothing, None),
}
KILLS = (
    "kill at any moment",
    "kill at an operation of a checkpoint",
    "kill at any moment",
    "kill within a file",
)
OTHERS = [name for name in FAULTS if name not in (*KILLS, "none")]


def attempt(
    folder: Path, fault: str, rng: random.Random, options: tuple[str, ...] = OPTIONS, longest: float = 1.0
) -> int:
    """Go on with a run under a fault; the exit code, negative for a signal.

    Args:
        longest: signals come within so many seconds.
    """
    arm, number = FAULTS[fault]
    seed, delay = rng.random(), rng.uniform(0.0, longest)
    struck(folder).unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            os._exit(_child(folder, arm, random.Random(seed), options))
        finally:
            os._exit(BROKEN)
    start = time.monotonic()
    if number is not None:
        while (
            time.monotonic() - start < delay
            and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.001)
        os.kill(child, number)
        start = time.monotonic()
    limit = GRACE if number in (signal.SIGTERM, signal.SIGINT) else 120
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() - start > limit:
            os.kill(child, signal.SIGKILL)
            raise AssertionError(f"{fault}: no end after {limit} s")
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _child(folder: Path, arm: Arm, rng: random.Random, options: tuple[str, ...]) -> int:
    log = os.open(folder.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    try:
        arm(folder, rng)
        run, settings = trainer(folder, *options)
        if checkpoint.exists(folder):
            resume(run, settings)
        return DONE if run.run() else ASKED
    except KeyboardInterrupt:
        return ASKED
    except OSError as error:
        print(error, file=sys.stderr)
        return FAILED
    except BaseException:
        traceback.print_exc()
        return BROKEN


def check(folder: Path, before: int) -> int:
    """The newest whole checkpoint's step, 0 for none; it must load and not be older than before."""
    if not checkpoint.exists(folder):
        assert before == 0, f"{folder}: step {before} is lost"
        return 0
    content = checkpoint.load(folder)
    assert content["step"] >= before, f"{folder}: step {before} is lost, {content['step']} is left"
    return content["step"]


def curve(folder: Path) -> list[dict[str, Any]]:
    """The log without the clock."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "samples_per_second"} for record in records]


def compare(folder: Path, whole: Path) -> None:
    """The run equals the one that nobody disturbed, bit for bit, and left nothing else behind."""
    assert curve(folder) == curve(whole), f"{folder}: another curve"
    a, b = checkpoint.load(folder), checkpoint.load(whole)
    for part in b:
        assert same(a[part], b[part]), f"{folder}: another {part}"
    names = {f.name for f in (folder / checkpoint.FOLDER).iterdir()}
    assert names == {f.name for f in (whole / checkpoint.FOLDER).iterdir()}, f"{folder}: {names}"


def suite(place: Path, wanted: list[str], seed: int = 0, options: tuple[str, ...] = ()) -> Counter:
    """Runs until all these faults have struck; how often which did."""
    rng, options = random.Random(seed), (*OPTIONS, *options)
    counts: Counter = Counter()
    place.mkdir(exist_ok=True)
    whole, start = place / "whole", time.monotonic()
    assert _finish(whole, rng, options) == DONE
    longest = 0.6 * (time.monotonic() - start)
    rng.shuffle(wanted)
    runs = 0
    while wanted:
        runs += 1
        folder, step = place / f"run{runs}", 0
        while wanted:
            fault = wanted[-1]
            code = attempt(folder, fault, rng, options, longest)
            assert code != BROKEN, f"{fault}: {folder.with_suffix('.out').read_text()[-2000:]}"
            step = check(folder, step)
            if struck(folder).exists() or code not in (DONE, FAILED):
                counts[fault] += 1
                wanted.pop()
            if code == DONE:
                break
        assert _finish(folder, rng, options) == DONE, folder.with_suffix(".out").read_text()[-2000:]
        compare(folder, whole)
        print(f"run {runs}: {sum(counts.values())} faults struck, equal to the undisturbed run bit for bit")
        shutil.rmtree(folder)
    counts["runs"] = runs
    return counts


def _finish(folder: Path, rng: random.Random, options: tuple[str, ...] = OPTIONS) -> int:
    return attempt(folder, "none", rng, options)


def full_disk(place: Path, seed: int) -> None:
    """In a namespace of its own: a real file system of 24 MB that fills up, is emptied again, and becomes read-only."""
    rng, whole, disk = random.Random(seed), place / "whole", place / "disk"
    assert _finish(whole, rng) == DONE
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)
    (disk / "run").mkdir()
    folder, step, codes = place / "run", 0, Counter()
    folder.symlink_to(disk / "run")
    for round_ in range(6):
        filler = disk / "filler"
        room = rng.randrange(0, 14_000_000)
        with open(filler, "wb") as stream:
            left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - room
            stream.write(bytes(max(0, left)))
        code = attempt(folder, "none", rng, (*OPTIONS[1:], f"trainer.steps={6 * round_ + 6}"))
        codes[code] += 1
        assert code in (DONE, FAILED), folder.with_suffix(".out").read_text()[-2000:]
        step = check(folder, step)
        filler.unlink()
        again = attempt(folder, "none", rng, (*OPTIONS[1:], f"trainer.steps={6 * round_ + 6}"))
        assert again == DONE, folder.with_suffix(".out").read_text()[-2000:]
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code = attempt(folder, "none", rng)
    assert code == FAILED, code
    check(folder, 36)
    print(
        f"full disk: {codes[FAILED]} of 6 runs could not save, all went on and stayed whole; read-only: still loads"
    )


def main() -> None:
    """The whole of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--others", type=int, default=8, help="of each other fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.within:
        full_disk(Path(options.within), options.seed)
        return
    with tempfile.TemporaryDirectory() as place:
        wanted = [KILLS[i % len(KILLS)] for i in range(options.kills)] + options.others * OTHERS
        counts = suite(Path(place), wanted, options.seed)
        for name, count in counts.items():
            print(f"{count:5d}  {name}")
    with tempfile.TemporaryDirectory() as place:
        line = [sys.executable, "-m", "tests.faults", "--within", place, "--seed", str(options.seed)]
        if subprocess.run(["unshare", "-Urm", *line]).returncode:
            print("full disk: FAILED, or this machine lets nobody mount (unshare -Urm)")
            sys.exit(1)


if __name__ == "__main__":
    main()
