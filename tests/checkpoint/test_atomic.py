"""Files and folders are whole or not there: killed at each operation on the disk, with drafts of others beside."""

import fcntl
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from ditmoe.checkpoint import atomic, replacing
from ditmoe.checkpoint.alone import alone_at, alone_in
from ditmoe.checkpoint.atomic import check_writable, clear, recover, replacing_folder
from ditmoe.config.errors import explain

OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")
UNTIL_WRITING = ("replacing", "replacing_folder", "_begun", "_created", "_made", "lock")


def killed_at(number: int, work: Callable[[], None], place: Path) -> bool:
    """Whether there was so late an operation; `work` in a process that is killed there."""
    if (child := os.fork()) == 0:

        def hook(event: str, arguments: tuple) -> None:
            nonlocal number
            if event in OPERATIONS and any(str(place) in str(a) for a in arguments[:2]):
                number -= 1
                if number == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def write(path: Path, content: str) -> None:
    with replacing_folder(path) as draft:
        (draft / "sub").mkdir()
        for name in ("a", "sub/b"):
            (draft / name).write_text(content)


def read(path: Path) -> set[str]:
    assert sorted(str(f.relative_to(path)) for f in path.rglob("*")) == ["a", "sub", "sub/b"]
    return {(path / name).read_text() for name in ("a", "sub/b")}


@pytest.fixture(params=["exchanged", "moved"])
def exchanged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bool:
    """Whether the file system exchanges names, or the old folder has to be moved away first."""
    if request.param == "moved":
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
        return False
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    able = atomic._exchange(tmp_path / "1", tmp_path / "2")
    (tmp_path / "1").rmdir()
    (tmp_path / "2").rmdir()
    return able or pytest.skip("this file system cannot exchange names")


def test_a_folder_is_the_old_one_or_the_new_one_whenever_its_writer_is_killed(
    tmp_path: Path, exchanged: bool
) -> None:
    path, number, found = tmp_path / "model", 0, []
    while True:
        number += 1
        write(path, "old")
        assert os.listdir(tmp_path) == ["model"]  # the litter of the one before is gone
        if not killed_at(number, lambda: write(path, "new"), tmp_path):
            break
        assert path.exists() or not exchanged
        recover(path)
        found.append(read(path))
    assert number > 15
    assert set().union(*found) == {"old", "new"}
    assert found == sorted(found, key=lambda content: content == {"new"})
    assert read(path) == {"new"}


def test_what_fails_leaves_the_old_one_and_no_litter(
    tmp_path: Path, exchanged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "model", os.rename
    write(path, "old")

    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    def failing_when_it_is_away(a: Path, b: Path) -> None:
        rename(a, b) if path.exists() or "ditmoe-old" in str(a) else failing()

    for module, name, function in (
        (atomic, "sync", failing),
        (atomic, "_exchange" if exchanged else "_beside", failing),
        (os, "rename", failing if exchanged else failing_when_it_is_away),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, function)
            with pytest.raises(OSError, match="Input/output error"):
                write(path, "new")
        assert read(path) == {"old"}
        assert os.listdir(tmp_path) == ["model"]
    write(path, "new")
    assert read(path) == {"new"}


def test_drafts_of_living_processes_stay_and_those_of_dead_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # each container has such a process
    path, folder = tmp_path / "metrics.json", tmp_path / "model"
    foreign = tmp_path / ".metrics.json.1.tmp"
    foreign.touch()
    for dead in (".x.01234567.ditmoe-draft", ".y.01234567.ditmoe-draft"):
        (tmp_path / dead).mkdir() if ".x" in dead else (tmp_path / dead).touch()
    os.mkfifo(tmp_path / ".z.01234567.ditmoe-draft")
    (tmp_path / ".link.01234567.ditmoe-draft").symlink_to(foreign)
    with replacing(path) as one, replacing_folder(folder) as draft, replacing(path) as other:
        one.write(b"1")
        other.write(b"2")
        (draft / "a").touch()
        (draft / "sub").mkdir()
        (draft / "sub" / "b").touch()
        clear(tmp_path)
        assert len(list(tmp_path.glob(".*-draft"))) == 3 + 1  # and the link, which nobody follows
    assert path.read_bytes() == b"1"
    read(folder)
    (tmp_path / ".link.01234567.ditmoe-draft").unlink()
    assert sorted(os.listdir(tmp_path)) == [foreign.name, "metrics.json", "model"]


def test_without_locks_a_draft_is_litter_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    old, young = (tmp_path / f".{name}.01234567.ditmoe-draft" for name in "ab")
    for place in (old, young):
        place.mkdir()
    os.utime(old, (0, 0))
    clear(tmp_path)
    assert os.listdir(tmp_path) == [young.name]
    with replacing(tmp_path / "c") as stream:
        stream.write(b"1")
    write(tmp_path / "d", "new")
    assert sorted(os.listdir(tmp_path)) == [young.name, "c", "d"]


def test_a_link_keeps_pointing_at_the_folder_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to("disk/model")
    for content in ("old", "new"):
        write(tmp_path / "model", content)
        assert read(tmp_path / "disk" / "model") == {content}
    assert (tmp_path / "model").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["model"]


@pytest.mark.parametrize("where", [".", "..", "../..", "link"])
def test_the_folder_one_stands_in_is_not_replaced(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content would be deleted below the process and the shell that started it."""
    here = tmp_path / "place" / "run" / "here"
    here.mkdir(parents=True)
    (here / "link").symlink_to(here)
    monkeypatch.chdir(here)
    for call in (lambda: check_writable(Path(where), folder=True), lambda: write(Path(where), "new")):
        with pytest.raises(
            ValueError, match=r"^[^\n]* must be another folder than the current one, which it would"
        ):
            call()
    assert os.listdir() == ["link"]
    write(Path("within"), "new")
    write(Path("../beside"), "new")
    assert read(here.parent / "beside") == read(here / "within") == {"new"}


def test_a_file_where_a_folder_is_to_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError) as told:
        (tmp_path / "file").mkdir(exist_ok=True)
    assert explain(told.value) == f"{tmp_path / 'file'} must be a folder or not exist, got something else"


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing_folder(tmp_path / "model") as draft:
            (draft / "a").touch(0o600)
            (draft / "b").touch()
    finally:
        os.umask(before)
    assert {oct(f.stat().st_mode & 0o777) for f in (tmp_path / "model").iterdir()} == {"0o640"}


def test_no_writer_hides_that_the_disk_is_full(tmp_path: Path) -> None:
    """NumPy's own way to write arrays to files loses the last buffer in silence."""
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        try:
            with replacing(tmp_path / "a.npy") as stream:
                np.save(stream, np.ones(100))
        except OSError:
            os._exit(3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert os.listdir(tmp_path) == []


def test_a_folder_has_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.time, "sleep", lambda seconds: None)
    out = tmp_path / "out"
    with alone_in(out):
        with pytest.raises(ValueError, match=r"another process is writing .*out: wait"), alone_in(out):
            pass
        (out / "a").touch()
    with alone_in(out):
        (out / "a").unlink()
    assert out.exists()
    with pytest.raises(KeyError), alone_in(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()


def test_a_file_has_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of what lies beside it under its name; others in its folder have theirs."""
    monkeypatch.setattr(atomic.time, "sleep", lambda seconds: None)
    file = tmp_path / "new" / "a.npz"
    with alone_at(file):
        with pytest.raises(ValueError, match=r"another process is writing .*a\.npz: wait"), alone_at(file):
            pass
        with alone_at(file.with_name("b.npz")), replacing(file) as stream:
            stream.write(b"whole")
        clear(file.parent)
        assert len(os.listdir(file.parent)) == 2
    assert os.listdir(file.parent) == ["a.npz"]

    def dies() -> None:
        with alone_at(file):
            os.kill(os.getpid(), signal.SIGKILL)

    assert killed_at(99, dies, tmp_path)
    with alone_at(file):
        pass
    assert os.listdir(file.parent) == ["a.npz"]
    with pytest.raises(KeyError), alone_at(tmp_path / "none" / "a.npz"):
        raise KeyError
    assert os.listdir(tmp_path) == ["new"]


def test_who_is_refused_a_place_takes_nothing_of_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even an empty folder that was not there when it looked."""
    monkeypatch.setattr(atomic.time, "sleep", lambda seconds: None)
    out = tmp_path / "out"
    with alone_in(out):
        lexists = os.path.lexists
        monkeypatch.setattr(os.path, "lexists", lambda path: False)
        with pytest.raises(ValueError, match="another process"), alone_in(out):
            pass
        monkeypatch.setattr(os.path, "lexists", lexists)
        assert out.exists()


def test_no_device_and_no_pipe_becomes_a_file(tmp_path: Path) -> None:
    """Who may write into its folder would have /dev/null replaced for everybody."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(ValueError, match="must be a plain file"), replacing(tmp_path / name):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("folder", [False, True])
def test_a_full_disk_is_told_with_the_name_of_what_was_written(folder: bool, tmp_path: Path) -> None:
    """Whoever writes into an open file gets an error without one."""
    place = tmp_path / "a"
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space") as told:  # noqa: SIM117
            with replacing_folder(place) if folder else replacing(place):
                os.write(full, b"x")
    finally:
        os.close(full)
    assert explain(told.value, "sample") == f"{place}: No space left on device"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [replacing, replacing_folder])
def test_an_interrupt_at_any_line_before_writing_leaves_no_draft(write: Callable, tmp_path: Path) -> None:
    ended, number = False, 0
    while not ended:
        number += 1
        left = number

        def traced(frame: FrameType, event: str, _: object) -> Callable | None:
            nonlocal left
            if frame.f_code.co_filename != atomic.__file__ or frame.f_code.co_name not in UNTIL_WRITING:
                return None
            left -= event == "line"
            if not left:
                raise KeyboardInterrupt
            return traced

        try:
            sys.settrace(traced)
            with write(tmp_path / "a"):
                sys.settrace(None)
                ended = True
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert not list(tmp_path.iterdir()), number
        finally:
            sys.settrace(None)
    assert number > 10
