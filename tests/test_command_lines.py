"""A few wrong numbers, wrong kinds and bare surroundings for commands; `tests.command_numbers`, `.command_keys` and
`.surroundings` have all.
"""

import re
from pathlib import Path

import pytest

from ditmoe.config.folders import config_folder
from tests import warm

COMMANDS = sorted(file.stem for file in config_folder().glob("*.yaml"))


@pytest.mark.parametrize(
    ("module", "share"), [("command_numbers", "0.002"), ("command_keys", "0.002"), ("surroundings", "0.07")]
)
def test_commands_end_in_success_or_in_one_line(module: str, share: str) -> None:
    """In processes of their own, without the tests' checks of types."""
    done = warm.command(f"tests.{module}", "--share", share, "--seed", "1", cwd=warm.ROOT, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    "word", ["+x=1", "+_target_=os.system", "++_partial_=true", "+x._args_=[1]", "~device", "~out"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_added_or_taken_away_is_known(command: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    needed = {name: "there" for name in ("checkpoint", "source") if f"\n{name}: ???" in told(command)}
    words = [f"{name}={value}" for name, value in needed.items()]
    done = warm.command(f"ditmoe.{command}", *words, word, cwd=tmp_path)
    name = re.sub(r"^[+~]+|=.*", "", word)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: [^\n]*{re.escape(name)}[^\n]*\n", done.stderr), done.stderr
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def told(command: str) -> str:
    return "\n" + (config_folder() / f"{command}.yaml").read_text()
