"""Arrows point down only: who may import whom (see CONTRIBUTING.md)."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {  # a module may import what stands in a line above it
    "layout": 0, "ranks": 0, "seeding": 0, "scheduler": 0, "stored": 0, "precision": 0, "record": 0, "files": 0,
    "outside": 0, "options": -1,
    "layers": 1, "modality": 1, "launch": 1, "process": 1, "ema": 1, "stop": 1, "guard": 1, "sharded": 1, "manifest": 1,
    "checkpoint": 2,
    "moe": 2, "cli": 2,
    "model": 3, "sampler": 3, "health": 3,
    "mesh": 4, "masked": 4, "counting": 4, "published": 4, "transfer": 4, "progress": 4, "saver": 4,
    "build": 5, "batches": 5, "traffic": 5,
    "sample": 6, "trainer": 6, "weights": 6, "plan": 6,
    "evaluate": 7, "prepare": 7, "train_codec": 7, "view": 7, "convert": 7, "folder": 7, "parts": 7,
    "train": 8, "pipeline": 8, "card": 8, "export": 9,
}  # fmt: skip
SHARED = {"grid", "frechet", "codec", "autoencoder", "adapter", "latents", "native", "digits", "sheet"}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_core_knows_no_modality() -> None:
    for file in (ROOT / "ditmoe").rglob("*.py"):
        assert not any(name.split(".")[0] == "modalities" for name in imports(file)), file


def test_arrows_point_down() -> None:
    for file in (ROOT / "ditmoe").rglob("*.py"):
        own = file.relative_to(ROOT / "ditmoe").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "ditmoe" and len(parts) > 1 and parts[1] in LAYERS and parts[1] != own:
                assert LAYERS[parts[1]] < LAYERS[own], f"{own} imports {parts[1]}"


def test_siblings_never_meet() -> None:
    for file in (ROOT / "modalities").glob("*/*.py"):
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "modalities" and len(parts) > 1:
                assert parts[1] in SHARED | {file.parent.name}, f"{file} imports {name}"
            if parts[0] == "ditmoe" and len(parts) > 1:
                assert parts[1] in {"modality", "layers", "layout", "files", "outside", "checkpoint"}, (
                    f"{file} imports {name}"
                )


def test_importing_the_package_is_light() -> None:
    code = "import ditmoe, sys; print([m for m in ('hydra', 'diffusers', 'open3d', 'scipy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
