"""A run that drops a step while a command reads it."""

import shutil
from typing import Any

import pytest

from ditmoe import checkpoint


def drop_what_is_found(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Remove each step but the first as soon as `checkpoint.find` has found it; the steps found, in order."""
    find, steps = checkpoint.find, []

    def dropped(*of: Any, **more: Any) -> checkpoint.Checkpoint:
        found = find(*of, **more)
        steps.append(found.plain["step"])
        if found.plain["step"] > 1:
            shutil.rmtree(found.path)
        return found

    monkeypatch.setattr(checkpoint, "find", dropped)
    return steps
