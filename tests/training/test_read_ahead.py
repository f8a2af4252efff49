"""What workers read ahead is what is read without them, and they end with the run, however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditmoe.conditioning import ClassLabel, Condition
from ditmoe.diffusion import FlowMatching
from ditmoe.modality import Modality, Reader
from ditmoe.parallel import Mesh
from ditmoe.training import read_ahead
from ditmoe.training.batch import Batch
from ditmoe.training.batches import Batches
from ditmoe.training.read_ahead import ReadAhead, default_workers, reader_of
from modalities.image import Pictures
from tests.subjects import composed
from tests.training.test_trainer import same


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of two classes, one of them damaged."""
    root = tmp_path_factory.mktemp("pictures")
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        for i in range(6):
            noise = np.random.default_rng(i).integers(0, 255, (20, 24, 3), np.uint8)
            Image.fromarray(noise).save(root / "train" / name / f"{i}.png")
    (root / "train" / "cat" / "0.png").write_bytes(b"no picture")
    return root


class Part(Mesh):
    """One of two processes, as far as batches ask."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.world = rank, 2


def of_pictures(root: Path, mesh: Mesh | None = None) -> Batches:
    from ditmoe.config import build

    words = (
        "modality=image",
        "modality.size=[16,16]",
        "modality.codec.channels=3",
        f"modality.data.root={root}",
    )
    modality = build.make_modality({"modality": composed("train", *words)["modality"]})
    tokens, read = modality.tokens(24), ClassLabel(4, len(modality.classes)).read
    return Batches(modality, tokens, FlowMatching(), mesh or Mesh(), 3, 4, 0.1, read)


def parts(batch: Batch) -> dict[str, torch.Tensor]:
    return {"x0": batch.x0, "noise": batch.noise, "t": batch.t, **batch.asked.tensors()}


def workers_of(pid: int) -> list[int]:
    """Processes below one, at any depth, that live."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            below.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = list(below.get(pid, ()))
    for each in found:
        found += below.get(each, ())
    return found


@pytest.fixture
def pool() -> Iterator[list[ReadAhead]]:
    made: list[ReadAhead] = []
    yield made
    for each in made:
        each.close()


@pytest.mark.parametrize("rank", [None, 1])
def test_any_number_of_workers_gives_the_same_batches_in_order(
    rank: int | None, folder: Path, pool: list[ReadAhead], capfd: pytest.CaptureFixture[str]
) -> None:
    batches = of_pictures(folder, None if rank is None else Part(rank))
    plain, expected = batches.source, [parts(batches(i)) for i in range(7)]
    for workers in (1, 3) if rank is None else (2,):
        pool.append(ReadAhead(plain, 7, workers))
        batches.source = pool[-1]
        assert all(same(parts(batches(i)), expected[i]) for i in range(5))
        assert all(same(parts(batches(i)), expected[i]) for i in (3, 4, 5, 6))  # as a run that goes on
    told = [line for line in capfd.readouterr().err.splitlines() if "unreadable picture" in line]
    assert len(told) == 1, told  # once, whoever found it


def test_an_error_comes_as_without_workers(tmp_path: Path, pool: list[ReadAhead]) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "train" / "cat" / f"{i}.png").write_bytes(b"no picture")
    data = Pictures((8, 8), tmp_path)
    lines = []
    for workers in (0, 1):
        pool.append(ReadAhead(_Twos(data.batch), 9, workers))
        with pytest.raises(ValueError, match="must hold readable pictures") as caught:
            pool[-1](0)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]


class _Twos:
    """Batches of two by their index."""

    def __init__(self, batch: object) -> None:
        self.batch = batch

    def __call__(self, index: int) -> object:
        return self.batch(2, 0, index)  # type: ignore[operator]


class _Slow:
    """Large enough for shared memory."""

    def __call__(self, index: int) -> np.ndarray:
        return np.full(2**18, index, np.float64)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_that_is_killed_is_one_line(pool: list[ReadAhead]) -> None:
    pool.append(ReadAhead(_Slow(), 10**6, 2))
    assert pool[0](0)[0] == 0
    before = [
        pid for pid in workers_of(os.getpid()) if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    for pid in before[1:]:  # the first is their server
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match=r"memory is short: trainer\.workers=1"):
        assert [pool[0](i)[-1] for i in range(1, 100)]


RUN = """
import time
from ditmoe.training.read_ahead import ReadAhead
def read(index):
    return index
if __name__ == "__main__":
    ahead = ReadAhead(read, 10**6, 2)
    ahead(0)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_die_with_a_run_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUN)
    surroundings = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        [sys.executable, tmp_path / "run.py"],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=surroundings,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        below = workers_of(run.pid)
        assert len(below) >= 3
        os.killpg(run.pid, signal.SIGINT)  # as Ctrl-C on a terminal, which workers leave to the run
        time.sleep(0.1)
        run.kill()
    end = time.monotonic() + 20
    while (left := [pid for pid in below if _lives(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_are_for_files_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    files, memory = (Reader(len, len, files=f) for f in (True, False))  # type: ignore[arg-type]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert default_workers(memory, cuda) == default_workers(files, cpu) == 0
    assert default_workers(files, cuda) == 7
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers(files, cuda) == 1


def test_a_subclass_that_changes_batches_is_asked_for_them(folder: Path) -> None:
    batches = of_pictures(folder)
    kind = type(batches.modality)

    class Other(kind):  # type: ignore[misc, valid-type]
        def batch(self, *address: int) -> tuple[torch.Tensor, Condition]:
            return super().batch(*address)

    def made(kind: type) -> Modality:
        found = object.__new__(kind)
        found.__dict__.update(vars(batches.modality))
        return found

    assert reader_of(made(Other)).read.__name__ == "batch"
    assert reader_of(made(kind)).files


def test_workers_look_for_modules_where_the_trainer_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would look into the working folder first, which may hold a stranger's multiprocessing.py."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["/somewhere", *sys.path])
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        forkserver,
        "ensure_running",
        lambda: seen.append((os.environ["PYTHONSAFEPATH"], os.environ["PYTHONPATH"].split(os.pathsep)[0])),
    )
    before = dict(os.environ)
    read_ahead._start_server(len)
    assert seen == [("1", "/somewhere")]
    assert dict(os.environ) == before
