"""Copies captions when shapes are prepared, to a metadata.jsonl in the new folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import replacing
from modalities.shared.captions import WrittenCaptions

FILE, COUNT = "metadata.jsonl", "captions"
"""The file of captions, and the entry of the report with their number."""


def check_captions(out: Path, before: Mapping[str, Any], wanted: bool) -> None:
    """Raise ValueError if captions would overwrite a file that `prepare` did not write.

    Args:
        before: the report of the last run.
    """
    if wanted and COUNT not in before and (out / FILE).exists():
        raise ValueError(f"out must have no {FILE} that somebody else wrote, where captions are prepared")


def find_captions(sources: Mapping[str, Path], root: Path) -> dict[str, list[str]]:
    """Path of a prepared shape -> captions of its source file below `root`, if any."""
    written = WrittenCaptions(root)
    return {target: told for target, path in sources.items() if (told := written(path))}


def write_captions(out: Path, told: Mapping[str, list[str]] | None, before: Mapping[str, Any]) -> None:
    """Write the captions; None removes those of an earlier run."""
    if told is not None:
        rows = [{"file_name": target, "captions": told[target]} for target in sorted(told)]
        with replacing(out / FILE) as stream:
            stream.write("".join(f"{json.dumps(row)}\n" for row in rows).encode())
    elif COUNT in before:
        (out / FILE).unlink(missing_ok=True)
