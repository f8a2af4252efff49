"""Batches that worker processes read ahead of the model, in order, each a function of its address alone."""

import multiprocessing
import os
import pickle
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import wait
from threading import Thread, current_thread, main_thread
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ditmoe.modality import Modality, Reader

MOST_BY_DEFAULT = 8
"""Processes that are started where no one says how many: further ones seldom pay for the memory that each takes."""
LARGE = 2**20
"""Bytes from which an array goes through shared memory, a file descriptor each, in place of a pipe."""
ROOM = 2**28
"""Bytes of shared memory that must be free for that: containers often have 64 MB, and end who takes more."""
_ENDED = r"exited unexpectedly|killed by signal"


def reader_of(modality: Modality) -> Reader:
    """The two steps of a modality's batches; where a subclass has changed `batch` alone, that is the first."""
    made = "packed_batch" if getattr(modality, "rows", 0) else "batch"
    order = {name: _first(type(modality), name) for name in (made, "reader")}
    return modality.reader() if order["reader"] <= order[made] else Modality.reader(modality)


def _first(kind: type, name: str) -> int:
    """How far up a class has its method from."""
    return next(i for i, each in enumerate(kind.__mro__) if name in vars(each))


def default_workers(reader: Reader, device: torch.device) -> int:
    """Processes for this rank: none where nothing is decoded, or where the model takes the cores itself."""
    if not reader.files or device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # of this machine, by torchrun
    return max(1, min(MOST_BY_DEFAULT, cores // ranks - 1))


class ReadAhead:
    """What `read` gives for an address, and then for the next ones, which workers read meanwhile.

    A pool of torch's DataLoader, with a server from which processes are forked: it has no GPU, no threads and no locks
    of the training. A call for any other address than the next begins there anew.

    Args:
        read: of an address, from 0; sent to the workers by pickle.
        stop: the first address that is not read ahead.
        workers: processes; 0 reads in the caller's, when it is asked.
        ahead: addresses that each worker is ahead.
    """

    def __init__(self, read: Callable[[int], Any], stop: int, workers: int, ahead: int = 2) -> None:
        self.read, self.stop, self.workers, self.ahead = read, stop, workers, ahead
        self._next = -1
        self._coming: Iterator[Any] | None = None

    def __call__(self, address: int) -> Any:
        """What was read for an address.

        Raises:
            ChildProcessError: one line, if a worker was killed.
            ValueError, OSError: those of `read`, as they are without workers.
        """
        if not self.workers or address >= self.stop:
            return self.read(address)
        if self._coming is None or address != self._next:
            self.close()
            self._coming = self._start(address)
        self._next = address + 1
        try:
            found = next(self._coming)
        except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
            if isinstance(error, RuntimeError) and not re.search(_ENDED, str(error)):
                raise  # a mistake in the code, with its traceback
            raise ChildProcessError(
                "a process that reads batches ahead was killed, which happens where memory is short: "
                f"trainer.workers={self.workers // 2} takes less; the same command goes on from what was saved"
            ) from error
        if isinstance(found, _Failed):
            raise found.error
        return _arrays(found)

    def close(self) -> None:
        """End the workers; a later call starts others."""
        self._coming = None  # whose end is that of its processes

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, first: int) -> Iterator[Any]:
        try:
            pickle.dumps(self.read)
        except Exception as error:  # pickle fails in many ways
            raise ValueError(
                f"trainer.workers must be 0 here, as what reads the batches cannot be sent to processes: {error}"
            ) from error
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        if kind == "forkserver":
            _start_server(self.read)
        with warnings.catch_warnings():
            # It warns of more workers than cores, which a person may want.
            warnings.simplefilter("ignore", UserWarning)
            loader = DataLoader(
                _Addresses(self.read, _has_shared_memory()),
                batch_size=None,
                sampler=range(first, self.stop),
                num_workers=self.workers,
                prefetch_factor=self.ahead,
                collate_fn=_itself,
                worker_init_fn=_begin,
                multiprocessing_context=kind,
            )
            return iter(loader)


class _Failed:
    """An error on its way to the process that has to do with it."""

    def __init__(self, error: Exception) -> None:
        try:
            same = str(pickle.loads(pickle.dumps(error))) == str(error)
        except Exception:  # of a class whose arguments are no text
            same = False
        self.error = error if same else ValueError(str(error))


class _Addresses(Dataset):
    """What is read, as a data set whose items are batches."""

    def __init__(self, read: Callable[[int], Any], shared: bool) -> None:
        self.read, self.shared = read, shared

    def __getitem__(self, address: int) -> Any:
        try:
            found = self.read(address)
        except (ValueError, OSError) as error:
            return _Failed(error)
        return _sendable(found) if self.shared else found


class _Large:
    """An array in shared memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.tensor = torch.from_numpy(np.ascontiguousarray(array))


def _sendable(found: Any) -> Any:
    if isinstance(found, np.ndarray) and found.nbytes >= LARGE:
        return _Large(found)
    return type(found)(map(_sendable, found)) if type(found) in (list, tuple) else found


def _arrays(found: Any) -> Any:
    if isinstance(found, _Large):
        return found.tensor.numpy()
    return type(found)(map(_arrays, found)) if type(found) in (list, tuple) else found


def _itself(found: Any) -> Any:
    return found


def _has_shared_memory() -> bool:
    try:
        about = os.statvfs("/dev/shm")
    except (AttributeError, OSError):
        return False
    return about.f_bavail * about.f_frsize >= ROOM


def _start_server(read: Callable[[int], Any]) -> None:
    """The server that workers are forked from, deaf to Ctrl-C and SIGTERM, which are the trainer's to obey."""
    of = getattr(read, "read", read)
    loaded = {__name__, type(of).__module__, type(getattr(of, "__self__", of)).__module__}
    multiprocessing.set_forkserver_preload(sorted(loaded))  # once, for all of them
    # Modules from where they are here, and from nowhere else: by itself it would look into the working folder first.
    told = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        with _ignoring(signal.SIGINT, signal.SIGTERM):  # which the server and its children inherit
            forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _ignoring(*numbers: int) -> Iterator[None]:
    if current_thread() is not main_thread():  # who cannot say so
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _begin(worker: int) -> None:
    """In each worker: leave signals to the trainer, and end with it, however it ends."""
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
