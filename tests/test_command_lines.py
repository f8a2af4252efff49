"""A few wrong numbers and bare surroundings for commands; `tests.command_numbers` and `tests.surroundings` have all."""

import pytest

from tests import warm


@pytest.mark.parametrize(("module", "share"), [("command_numbers", "0.002"), ("surroundings", "0.07")])
def test_commands_end_in_success_or_in_one_line(module: str, share: str) -> None:
    """In processes of their own, without the tests' checks of types."""
    done = warm.command(f"tests.{module}", "--share", share, "--seed", "1", cwd=warm.ROOT, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
