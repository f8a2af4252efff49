"""Prefetching: worker processes read batches ahead of the model, in order, each a function of its address alone."""

import multiprocessing
import os
import pickle
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import wait
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ditmoe.modality import Modality, Reader
from ditmoe.outside.signals import ENDING, handling, ignore

MOST_BY_DEFAULT = 8
"""Default upper bound of workers: more are seldom worth the memory that each takes."""
LARGE = 2**20
"""Bytes from which an array is sent through shared memory, with a file descriptor each, instead of a pipe."""
ROOM = 2**28
"""Free shared memory required for that, in bytes: containers often have 64 MB, and kill processes that use more."""
_ENDED = r"exited unexpectedly|killed by signal"


def reader_of(modality: Modality) -> Reader:
    """The two steps of a modality's batches; if a subclass overrides only `batch`, that is the first."""
    made = "packed_batch" if getattr(modality, "rows", 0) else "batch"
    order = {name: _first(type(modality), name) for name in (made, "reader")}
    return modality.reader() if order["reader"] <= order[made] else Modality.reader(modality)


def _first(kind: type, name: str) -> int:
    """The position in the MRO of the class that defines a method."""
    return next(i for i, each in enumerate(kind.__mro__) if name in vars(each))


def default_workers(reader: Reader, device: torch.device) -> int:
    """Default workers of this rank: none if nothing is decoded, or if the model needs the cores itself."""
    if not reader.files or device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # of this machine, by torchrun
    return max(1, min(MOST_BY_DEFAULT, cores // ranks - 1))


class ReadAhead:
    """Calls `read` for an address, while workers prefetch the next ones.

    Uses torch's DataLoader with a fork server, which has no GPU, threads or locks of the trainer. A call for any
    address but the next restarts prefetching there.

    Args:
        read: function of an address, from 0; pickled for the workers.
        stop: the first address that is not prefetched.
        workers: processes; 0 reads in the caller's process, on demand.
        ahead: addresses prefetched per worker.
    """

    def __init__(self, read: Callable[[int], Any], stop: int, workers: int, ahead: int = 2) -> None:
        self.read, self.stop, self.workers, self.ahead = read, stop, workers, ahead
        self._next = -1
        self._coming: Iterator[Any] | None = None

    def __call__(self, address: int) -> Any:
        """Return the result of `read` for an address.

        Raises:
            ChildProcessError: one line, if a worker was killed.
            ValueError, OSError: those of `read`, as without workers.
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
                raise  # a bug: keep the traceback
            raise ChildProcessError(
                "a process that reads batches ahead was killed, which happens where memory is short: "
                f"trainer.workers={self.workers // 2} takes less; the same command resumes from the last checkpoint"
            ) from error
        if isinstance(found, _Failed):
            raise found.error
        return _arrays(found)

    def close(self) -> None:
        """Stop the workers; a later call starts new ones."""
        self._coming = None  # its deletion ends the processes

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, first: int) -> Iterator[Any]:
        try:
            pickle.dumps(self.read)
        except Exception as error:  # pickle fails in many ways
            raise ValueError(
                f"trainer.workers must be 0 here, since the modality's reader cannot be sent to processes: {error}"
            ) from error
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        if kind == "forkserver":
            _start_server(self.read)
        with warnings.catch_warnings():
            # Suppresses the warning about more workers than cores, which may be intended.
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
    """An error to be sent to the trainer's process."""

    def __init__(self, error: Exception) -> None:
        try:
            same = str(pickle.loads(pickle.dumps(error))) == str(error)
        except Exception:  # its class cannot be made from text
            same = False
        self.error = error if same else ValueError(str(error))


class _Addresses(Dataset):
    """A data set whose items are batches."""

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
    """Start the server that workers are forked from; it ignores the signals that the trainer handles."""
    of = getattr(read, "read", read)
    loaded = {__name__, type(of).__module__, type(getattr(of, "__self__", of)).__module__}
    multiprocessing.set_forkserver_preload(sorted(loaded))  # once, for all of them
    # Import modules only from where they are here: by default the server would search the working folder first.
    told = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        with handling(signal.SIG_IGN, *ENDING):  # which the server and its children inherit
            forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _begin(worker: int) -> None:
    """Initialise a worker: ignore signals, which the trainer handles, and exit when the trainer does, in any case."""
    with suppress(ValueError):
        ignore(*ENDING)
    if parent := multiprocessing.parent_process():
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
