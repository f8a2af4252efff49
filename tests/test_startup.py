"""What a start does not wait for: libraries that take seconds are loaded by what uses them, no earlier."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(f.stem for f in (ROOT / "ditmoe").glob("*.py") if '__name__ == "__main__"' in f.read_text())
SLOW = {
    "av", "diffusers", "open3d", "scipy", "sympy", "tensorboard", "torch._dynamo", "torch.distributed.checkpoint",
    "torch.distributed.fsdp", "torch.distributed.tensor", "torch.utils.tensorboard", "transformers", "trimesh",
}  # fmt: skip
MISTAKES = {
    "train": ["trainer.stpes=1"],
    "sample": ["checkpoint=no/such/run"],
    "evaluate": ["generated=a.npz"],
    "export": ["checkpoint=no/such/run", "out=there"],
    "view": ["no/such.ply"],
}
"""Of some commands; the others are told a word that they do not know."""
STARTS = """
import contextlib, json, os, runpy, sys
from hydra.core.global_hydra import GlobalHydra
codes = {}
for command, words in json.loads(sys.argv[1]):
    sys.argv = [command, *words]
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            runpy.run_module(f"ditmoe.{command}", run_name="__main__")
        codes[command] = 0
    except SystemExit as end:
        codes[command] = end.code
    GlobalHydra.instance().clear()
print(json.dumps([codes, sorted(sys.modules)]))
"""
PLAN = """
import json, runpy, sys
sys.argv[0] = "plan"
try:
    runpy.run_module("ditmoe.plan", run_name="__main__")
finally:
    print(json.dumps(sorted(sys.modules)))
"""


def said(*words: str) -> str:
    """What a fresh interpreter prints last."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_package() -> None:
    code = "import json, sys, ditmoe; assert ditmoe.DiTMoE; print(json.dumps(sorted(sys.modules)))"
    modules = set(json.loads(said("-c", code)))
    assert "torch" in modules
    assert not modules & (SLOW | {"hydra", "PIL"})


def test_a_mistake_on_the_command_line() -> None:
    """None waits for torch, which takes longer than all the rest."""
    assert {"train", *MISTAKES} <= set(COMMANDS)
    words = [(name, MISTAKES.get(name, ["no_such_word=1"])) for name in COMMANDS]
    codes, modules = json.loads(said("-c", STARTS, json.dumps(words)))
    assert codes == dict.fromkeys(COMMANDS, 2)
    assert not set(modules) & (SLOW | {"torch"})


def test_help() -> None:
    codes, modules = json.loads(said("-c", STARTS, json.dumps([(name, ["--help"]) for name in COMMANDS])))
    assert codes == dict.fromkeys(COMMANDS, 0)
    assert not set(modules) & (SLOW | {"torch"})


@pytest.mark.parametrize("words", [[], ["modality=image", "router=diff_moe", "num_classes=3"]])
def test_a_plan_does_not_load_a_compiler(words: list[str]) -> None:
    """Torch's own rules of shapes would: `ditmoe.cost.shape_rules` stand in for those that models ask for."""
    modules = json.loads(said("-c", PLAN, "model=debug", *words))
    assert "torch" in modules
    assert not set(modules) & SLOW
