"""Processes that are forked when everything is loaded, which a fresh interpreter would take seconds for.

What a start imports, and what it does not, is looked at by `test_startup` in interpreters of their own.
"""

import gc
import multiprocessing
import os
import runpy
import signal
import sys
from contextlib import chdir
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
MARK = "from tests.many import"


def server() -> multiprocessing.context.ForkServerContext:
    """Starts processes as copies of a server, which has imported commands and what runs in many processes once.

    It does without the checks of types that pytest's own process has.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_loaded())
    with chdir(ROOT):  # where it looks for them
        forkserver.ensure_running()
    return context


@cache
def _loaded() -> list[str]:
    """Modules whose functions are called in many processes, and what they and commands import when they need it."""
    tests = (f for f in sorted((ROOT / "tests").glob("*/test_*.py")) if MARK in f.read_text())
    loaded = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in tests]
    lazy = ["diffusers", "torch._dynamo", "torch.distributed.checkpoint", "torch.utils.tensorboard"]
    of_data = [f"modalities.{name}" for name in ("image", "pointcloud.metrics", "pointcloud.viz", "video")]
    return ["tests.many", *loaded, *lazy, *of_data]


def command(module: str, *words: str, cwd: Path, timeout: float = 120) -> CompletedProcess:
    """Run `python -m module words` in a folder, and wait for it."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = server().Process(target=_run, args=(module, words, cwd, dict(os.environ), out, err))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"{module} {' '.join(words)} took more than {timeout} s")
        said = [file.read_text() if file.exists() else "" for file in (out, err)]
        return CompletedProcess([module, *words], process.exitcode, *said)


def _run(
    module: str, words: tuple[str, ...], cwd: Path, environment: dict[str, str], out: Path, err: Path
) -> None:
    gc.freeze()  # what the server has stays
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    multiprocessing.set_start_method(None, force=True)  # not that by which this process was started
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    own = (sys.prefix, sys.base_prefix)
    sys.path[:] = [str(cwd), str(ROOT), *(path for path in sys.path if path.startswith(own))]
    sys.argv[1:] = words
    sys.modules.pop(module, None)  # which another module may have imported
    runpy.run_module(module, run_name="__main__", alter_sys=True)
