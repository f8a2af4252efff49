"""What a step frees is there for the next one."""

import platform
import subprocess
import sys

import pytest

FREES = """
import resource
import numpy as np
from ditmoe.training.computing import keep_freed_memory

def step():
    for array in [np.empty(20 * 2**20, np.uint8) for _ in range(3)]:
        array[:] = 1

def faults(steps=5):
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
keep_freed_memory()
print(without, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("told", [False, True])
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if told:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    found = subprocess.run([sys.executable, "-c", FREES], capture_output=True, text=True, check=True)
    without, kept = map(int, found.stdout.split())
    assert without > 1000
    assert kept > 1000 if told else kept < 100
