"""Packages that merely depend on ditmoe, as a person would install them, and commands run beside them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = """
import contextlib, io, json, runpy, sys, warnings
from hydra.core.global_hydra import GlobalHydra
done = []
warnings.simplefilter("ignore", RuntimeWarning)  # a command may have been imported by another before it is run
for module, *words in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv[1:] = words
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(words[0], {}) if module == "python" else runpy.run_module(f"ditmoe.{module}", run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    GlobalHydra.instance().clear()
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""


def source(name: str) -> Path:
    """The folder of a package: one of the examples, or else here."""
    example = ROOT / "examples" / name
    return example if example.is_dir() else Path(__file__).parent / name


def install(site: Path, *names: str) -> Path:
    """Put packages into a folder of sys.path, with the entry points by which ditmoe finds their YAML files."""
    for name in names:
        shutil.copytree(source(name), site / name)
        told = site / f"{name}-1.0.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (told / "entry_points.txt").write_text(f"[ditmoe.configs]\n{name} = {name}.configs\n")
    return site


def run(home: Path, *commands: tuple[str, ...], path: tuple[Path, ...] = ()) -> list[tuple[int, str, str]]:
    """Run commands of ditmoe ("train", words...) or Python ("python", code) in one fresh process.

    Args:
        home: the working directory.
        path: what comes on sys.path before this checkout.

    Returns:
        Exit code, stdout and stderr of each.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))),
        "OMP_NUM_THREADS": "1",
    }
    home.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=home, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return [tuple(each) for each in json.loads(done.stdout.splitlines()[-1])]
