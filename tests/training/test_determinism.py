"""The same seed on the same machine gives the same run; on a GPU by option."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ditmoe import checkpoint
from tests.training.test_trainer import same, trainer


@pytest.mark.parametrize("router", ["token_choice", "batch_pool", "soft", "diff_moe"])
def test_same_seed_same_weights(tmp_path: Path, router: str) -> None:
    for name in ("a", "b"):
        torch.manual_seed(hash(name) % 1000)  # what was drawn before must not matter
        trainer(tmp_path / name, "trainer.steps=3", f"router={router}")[0].run()
    a, b = (checkpoint.load(tmp_path / name) for name in ("a", "b"))
    assert same(a["model"], b["model"])
    assert same(a["optimizer"], b["optimizer"])


def test_every_operation_of_a_step_has_an_exact_kernel_by_option(tmp_path: Path) -> None:
    """In a process of its own, since the switches are the process's."""
    code = f"""
import os, torch
from pathlib import Path
from tests.training.test_trainer import trainer
run, _ = trainer(Path({str(tmp_path)!r}), "trainer.steps=2", "trainer.deterministic=true")
assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
run.run()
"""
    environment = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_a_gpu_repeats_a_run_by_option(tmp_path: Path) -> None:
    for name in ("a", "b"):
        trainer(tmp_path / name, "trainer.steps=20", "trainer.deterministic=true")[0].run()
    a, b = (checkpoint.load(tmp_path / name) for name in ("a", "b"))
    torch.use_deterministic_algorithms(False)
    assert same(a["model"], b["model"])
