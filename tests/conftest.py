"""Shapes in annotations are checked while the tests run; free in production."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook

from tests import typecheck  # noqa: F401  (the hook looks it up as an attribute)
from tests.golden import Numbers, load

os.environ.setdefault("OMP_NUM_THREADS", "1")
hook = install_import_hook(["ditmoe", "modalities"], "tests.typecheck.check")
hook.__enter__()


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def import_path() -> Iterator[None]:
    """No test finds modules in the folder of an earlier one: a `mine.py` there would hide its package `mine`."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """No test leaves its own answer to Ctrl-C, SIGTERM or SIGHUP to the tests after it in the same process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    if ignored:  # by nohup, also for what the tests start
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before
    if ignored:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Numbers]:
    """Opens numbers that others' reference code computed (tests/golden/)."""
    return load


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, tests of a module stay with one worker, so that what its fixtures make is made once.

    Who has nothing left to do takes a part of another's.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays: to look through it for garbage takes a fifth of that time, and a second later on."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
