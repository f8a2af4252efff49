"""Two processes that write to one place: the second is refused and changes nothing, or each writes all or nothing.

The first one is stopped where it gives its first file or folder its name, the second runs, and the first goes on.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.command_numbers import Command, _run, nothing
from tests.fault_works import contents
from tests.surroundings import every_command

ONE = {
    "train image": (),
    "sample": ("out=out",),
    "sample into a file": ("out=out.npz",),
    "distill": (),
    "mesh": (),
    "prepare pointcloud": (),
    "prepare image": (),
    "train_codec": (),
}
"""Commands that have their place to themselves, and what they are told of it."""
EACH = {
    "convert": "max_shard_gb=1e-5",
    "export": "licence=mit",
    "analyze": "seed=1",
    "evaluate": "num=3",
    "evaluate pointcloud": "modality.evaluation.emd_points=8",
    "report": "{place}/other",
    "view pointcloud": "{place}/source/b/x.npy",
}
"""Those that put what they made in its place at the end, and a word by which that is another."""


@dataclass(frozen=True)
class Process:
    """A command in a process of its own."""

    number: int
    said: Path

    def stopped(self) -> bool:
        """Wait until it stops itself or ends; whether it stopped."""
        return os.WIFSTOPPED(self._changed(os.WUNTRACED))

    def go_on(self) -> None:
        os.killpg(self.number, signal.SIGCONT)

    def ended(self) -> tuple[int, str]:
        """Its exit code, and what it said on stderr."""
        code = os.waitstatus_to_exitcode(self._changed(0))
        return code, self.said.read_text().split("\npeak ")[0]

    def _changed(self, options: int) -> int:
        until = time.monotonic() + 100
        while not (found := os.waitpid(self.number, os.WNOHANG | options))[0]:
            if time.monotonic() > until:
                os.killpg(self.number, signal.SIGKILL)
                raise TimeoutError(self.said.read_text())
            time.sleep(0.002)
        return found[1]


def start(command: Command, folder: Path, said: Path, around: Callable[[Path], None] = nothing) -> Process:
    child = os.fork()
    if child == 0:
        time.sleep = lambda seconds: None  # nobody waits for the other
        _run(command, folder, said, list(command.words), around)
    return Process(child, said)


def alone(command: Command, folder: Path) -> dict[str, Any]:
    """What it makes of an empty folder."""
    folder.mkdir()
    code, said = start(command, folder, folder.with_suffix(".said")).ended()
    assert code == 0, said
    return made(folder)


def made(folder: Path) -> dict[str, Any]:
    return contents(folder) | {page.name: page.read_bytes() for page in folder.rglob("report.html")}


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything below a folder, also what is hidden: which file it is, when it was written, and its bytes."""
    return {
        str(path.relative_to(folder)): path.is_file() and (path.stat()[1:2], path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
    }  # fmt: skip


def at_the_first_result(folder: Path) -> None:
    """Stop all processes of a command where something is about to be given its name."""
    read, write = os.pipe()
    os.write(write, b".")
    os.set_blocking(read, False)

    def hook(event: str, arguments: tuple) -> None:
        if event != "os.rename" or not str(Path(arguments[1]).absolute()).startswith(str(folder)):
            return
        try:
            os.read(read, 1)  # once, whichever of them comes first
        except BlockingIOError:
            return
        os.killpg(0, signal.SIGSTOP)

    sys.addaudithook(hook)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("two")
    found = {command.name: command for command in every_command(place)}
    shutil.copytree(place / "run", place / "other")
    return found | {"place": place}


@pytest.mark.parametrize("name", ONE)
def test_a_refused_second_process_changes_no_byte(name: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    command = tiny[name.removesuffix(" into a file")]
    command = replace(command, words=(*command.words, *ONE[name]))
    first = start(command, folder, tmp_path / "first", at_the_first_result)
    assert first.stopped(), first.said.read_text()
    before = snapshot(folder)
    code, said = start(command, folder, tmp_path / "second").ended()
    after = snapshot(folder)
    first.go_on()
    assert first.ended()[0] == 0, first.said.read_text()
    assert (code, said.count("error: ")) == (2, 1), said
    assert "another process is" in said
    assert after == before


@pytest.mark.parametrize("name", EACH)
def test_of_two_that_are_not_kept_apart_each_writes_all_of_it(
    name: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    one, word = tiny[name], EACH[name].format_map(tiny)
    others = [each for each in one.words if each.split("=")[0] != word.split("=")[0]]
    other = replace(one, words=(word, *others))
    of_one, of_other = alone(one, tmp_path / "one"), alone(other, tmp_path / "other")
    assert of_one != of_other
    folder = tmp_path / "here"
    folder.mkdir()
    first = start(one, folder, tmp_path / "first", at_the_first_result)
    assert first.stopped(), first.said.read_text()
    code, said = start(other, folder, tmp_path / "second").ended()
    between = made(folder)
    first.go_on()
    assert first.ended()[0] == 0, first.said.read_text()
    assert code == 0, said
    assert between == of_other
    assert made(folder) == of_one
    assert not list(folder.rglob(".*"))
