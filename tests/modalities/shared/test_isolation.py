"""A job that ends, fills or stops its process costs itself alone, and is one error."""

import os
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from modalities.shared.isolation import isolated


class Panic(BaseException):
    """As PyO3 has it."""


def panic() -> None:
    os.write(2, b"thread panicked\n")
    raise Panic("capacity overflow")


@pytest.mark.skipif(sys.platform != "linux", reason="only there processes can be copied")
@pytest.mark.parametrize(
    ("work", "error", "told"),
    [
        (lambda: os.abort(), ChildProcessError, "ended its process"),
        (lambda: time.sleep(60), TimeoutError, "more than 0.5 seconds"),
        (panic, RuntimeError, "Panic: capacity overflow"),
        (lambda: np.ones(2**30), RuntimeError, "MemoryError"),
        (lambda: int("x"), ValueError, "invalid literal"),
    ],
)
def test_what_ends_its_process_is_an_error(
    work: Callable[[], object], error: type[Exception], told: str, capfd: pytest.CaptureFixture
) -> None:
    with pytest.raises(error, match=told):
        isolated(work, 0.5 if error is TimeoutError else 30, 2**28)
    assert capfd.readouterr().err == ""


def test_what_is_made_comes_back() -> None:
    assert isolated(lambda: np.arange(10**6), 30, 2**28).sum() == (10**6 - 1) * 10**6 // 2
