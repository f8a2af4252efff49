"""Every command where its screen is full or gone, its folders cannot be written, and its environment is bare.

`python -m tests.surroundings` runs all of them, each in a process of its own. With a failing screen the work is done
and the files are there; where nothing can be written, it is done or ends in one line and exit code 2. Processes are
forked when all is loaded, so that what libraries ask of the environment when they are imported is not tried here.
"""

import argparse
import builtins
import errno
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ditmoe import report, view
from tests.command_numbers import Command, attempt, commands, warm

MAINS = {f.stem for f in Path(view.__file__).parent.glob("*.py") if "\ndef main()" in f.read_text()}
WORKS, MAY_REFUSE = (0,), (0, 2)


def full(number: int) -> Callable[[Path], None]:
    """A stream on a full disk."""
    return lambda _: _onto(number, os.open("/dev/full", os.O_WRONLY))


def gone(number: int) -> Callable[[Path], None]:
    """A stream whose reader has gone, as by `| head -n 0`."""

    def around(_: Path) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        _onto(number, writer)

    return around


def _onto(number: int, handle: int) -> None:
    os.dup2(handle, number)
    os.close(handle)


def without(*names: str, **others: str) -> Callable[[Path], None]:
    """An environment without these words, and with others."""

    def around(_: Path) -> None:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(others)
        tempfile.tempdir = None

    return around


def read_only(code: int) -> Callable[[Path], None]:
    """A file system in whose current folder nothing can be made; the person may be root, whom modes do not stop."""

    def around(folder: Path) -> None:
        real = folder.resolve()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
            flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
            if not (changes or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
            if isinstance(arguments[0], int) or not Path(os.fsdecode(arguments[0])).absolute().is_relative_to(
                real
            ):
                return
            if event == "os.mkdir" and os.path.isdir(arguments[0]):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), arguments[0])
            raise OSError(code, os.strerror(code), os.fsdecode(arguments[0]))

        sys.addaudithook(hook)

    return around


def in_the_way(folder: Path) -> None:
    """A file where the results want a folder."""
    for name in ("out", "runs", "outputs"):
        (folder / name).write_text("")


def ascii_only(folder: Path) -> None:
    """LANG=C without UTF-8 mode, in a folder with a name of other letters."""
    os.environ.update(LANG="C", LC_ALL="C", PYTHONUTF8="0")
    other = folder / "Стул é"
    other.mkdir()
    os.chdir(other)
    sys.stdout = builtins.open(1, "w", closefd=False, encoding="ascii")  # noqa: SIM115
    sys.stderr = builtins.open(2, "w", closefd=False, encoding="ascii")  # noqa: SIM115


def both(folder: Path) -> None:
    full(1)(folder)
    full(2)(folder)


SURROUNDINGS: dict[str, tuple[Callable[[Path], None], tuple[int, ...]]] = {
    "stdout full": (full(1), WORKS),
    "stdout gone": (gone(1), WORKS),
    "stderr full": (full(2), WORKS),
    "both full": (both, WORKS),
    "no HOME": (without("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"), WORKS),
    "no TMPDIR": (without("TMPDIR", "TEMP", "TMP"), WORKS),
    "a TMPDIR that is not there": (without(TMPDIR="/nowhere/at/all"), WORKS),
    "ASCII alone": (ascii_only, WORKS),
    "a read-only folder": (read_only(errno.EROFS), MAY_REFUSE),
    "a folder of others": (read_only(errno.EACCES), MAY_REFUSE),
    "a file in the way": (in_the_way, MAY_REFUSE),
}


def every_command(place: Path) -> Iterator[Command]:
    """Those of `command_numbers`, `report` and `view`."""
    yield from commands(place)
    run = str(place / "run")
    yield Command("report", report.main, "report", (run, "out=out/report.html"))
    for kind, name in {"pointcloud": "x.npy", "image": "x.png"}.items():
        yield Command(
            f"view {kind}", view.main, "view", (str(place / "source/a" / name), "--out", "out/v.png")
        )


def main() -> None:
    """All of them, or a share."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the cases, drawn by the seed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    wrong, total, seen, rng = 0, 0, set(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for command in every_command(place):
            seen.add(command.main.__module__.rsplit(".", 1)[-1])
            chosen = [name for name in SURROUNDINGS if rng.random() < options.share]
            if chosen:
                warm(command, place)
                plain = attempt(command, place)
                assert plain.code == 0, (command, plain)
            for name in chosen:
                around, codes = SURROUNDINGS[name]
                end = attempt(command, place, around=around)
                lines = [line for line in end.text.splitlines() if "error: " in line]
                bad = end.code not in codes or "Traceback" in end.text
                bad |= end.code == 2 and len(lines) != 1
                bad |= end.code == 0 and not plain.files <= end.files
                total += 1
                wrong += bad
                if bad:
                    print(f"{command.name}, {name}: ended with {end.code}, "
                          f"without {sorted(plain.files - end.files)}: {end.text[-400:]!r}", flush=True)  # fmt: skip
    if missing := MAINS - seen - {"demo"}:  # which serves until it is stopped
        print(f"no case for {', '.join(sorted(missing))}")
    print(f"{total} commands in surroundings, {wrong} wrong")
    sys.exit(bool(wrong or missing))


if __name__ == "__main__":
    main()
