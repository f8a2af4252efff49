"""Captions that go along when shapes are prepared, as metadata.jsonl of the new folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import replacing
from modalities.shared.captions import WrittenCaptions

FILE, COUNT = "metadata.jsonl", "captions"
"""Where they are written, and the entry of the report that says of how many shapes."""


def check_captions(out: Path, before: Mapping[str, Any], wanted: bool) -> None:
    """Raises ValueError where captions would take the place of a file that `prepare` did not write.

    Args:
        before: the report of the last run.
    """
    if wanted and COUNT not in before and (out / FILE).exists():
        raise ValueError(f"out must have no {FILE} that somebody else wrote, where captions are prepared")


def find_captions(sources: Mapping[str, Path], root: Path) -> dict[str, list[str]]:
    """Path of a prepared shape -> what is said of the file below `root` of which it was made, where something is."""
    written = WrittenCaptions(root)
    return {target: told for target, path in sources.items() if (told := written(path))}


def write_captions(out: Path, told: Mapping[str, list[str]] | None, before: Mapping[str, Any]) -> None:
    """Have the captions there; None takes away those of an earlier run."""
    if told is not None:
        rows = [{"file_name": target, "captions": told[target]} for target in sorted(told)]
        with replacing(out / FILE) as stream:
            stream.write("".join(f"{json.dumps(row)}\n" for row in rows).encode())
    elif COUNT in before:
        (out / FILE).unlink(missing_ok=True)
