"""What a stranger gets: the archive is the checkout, and the versions are those that are declared."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def declared() -> dict[str, str]:
    """The lowest version of each package that running, testing and the files of scanners need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["test"], *extras["scans"]]
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", each).groups() for each in needed)


def pinned(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_the_floor_is_what_is_declared() -> None:
    assert pinned("constraints-floor.txt") == declared()


def test_what_run_installs_is_allowed() -> None:
    installed = pinned("constraints.txt")
    for name, least in declared().items():
        assert number(installed[name]) >= number(least), name


@pytest.mark.parametrize(
    ("name", "bad"),
    [("hydra-core", "1.3.5"), ("trimesh", "4.12.2"), ("diffusers", "0.37.1"), ("pillow", "12.2")],
)
def test_versions_known_to_be_unsafe_are_refused(name: str, bad: str) -> None:
    assert number(declared()[name]) > number(bad)


def test_the_archive_is_the_checkout(tmp_path: Path) -> None:
    """Every tracked file, and nothing that a build or a run left behind."""
    pytest.importorskip("setuptools", minversion="77")
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    tree = tmp_path / "tree"
    for name in tracked:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    for litter in ("tests/__pycache__/a.pyc", "modalities/pointcloud/kernels/base.so", "runs/log.jsonl"):
        (tree / litter).parent.mkdir(parents=True, exist_ok=True)
        (tree / litter).touch()
    build = "from setuptools.build_meta import build_sdist; build_sdist('out')"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    with tarfile.open(next((tree / "out").iterdir())) as archive:
        members = {member.name.split("/", 1)[-1]: member for member in archive if member.isfile()}
    made = {name for name in members if name.startswith("ditmoe.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert set(members) - made == tracked
    assert members["run"].mode & 0o111
