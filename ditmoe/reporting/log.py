"""Read and thin out the training log of a run, of any length and even if damaged."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ditmoe.outside import open_regular
from ditmoe.reporting.budget import text_of
from ditmoe.reporting.numbers import number

MOST_POINTS = 2000
"""Most points of a curve."""
MOST_CURVES = 4000
LONGEST_LINE = 2**20
"""Most bytes of a record; one with a thousand experts takes a tenth of that."""
MOST_PARSED = 64 * 2**20
"""Most bytes of a log whose lines are all parsed; in a longer log, lines at even distances are."""


@dataclass
class Log:
    """The content of a log.

    Attributes:
        steps: in increasing order.
        curves: by name; None where a number is missing or not finite.
        every: one of this many records is kept.
        damaged: number of lines that are not records, or are out of order.
        infinite: number of values that are not finite.
        unnamed: number of curves that were left out.
    """

    steps: list[int] = field(default_factory=list)
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    every: int = 1
    damaged: int = 0
    infinite: int = 0
    unnamed: int = 0


def read_log(file: Path, numbers: int) -> Log:
    """Read the curves of a log.

    Args:
        numbers: most values of all curves together.

    Raises:
        OSError, ValueError: if it cannot be opened.
    """
    log = Log()
    lines, skipping = _lines(file, log)
    records: list[dict[str, Any]] = []
    most, stride, last, seen = MOST_POINTS, 1, -1, 0
    latest: dict[str, Any] | None = None
    for line in lines:
        record = _record(line)
        if record is None or record["step"] <= last:
            log.damaged += 1
            continue
        last, latest = record["step"], record
        most = max(2, min(most, numbers // max(1, len(record))))
        if seen % stride == 0:
            records.append(record)
            if len(records) > most:
                records, stride = records[::2], 2 * stride
        seen += 1
    if latest is not None and records[-1] is not latest:
        records.append(latest)
    names = list(dict.fromkeys(name for record in records for name in record if name != "step"))
    # Every curve has a value or a gap for each record, so records with different names also count in full.
    shown = min(MOST_CURVES, numbers // max(1, len(records) - 1))  # the latest record may be one more
    log.unnamed = max(0, len(names) - shown)
    log.every = stride * skipping
    log.steps = [record["step"] for record in records]
    for name in names[:shown]:
        values = [record.get(name) for record in records]
        log.infinite += sum(isinstance(value, float) and not math.isfinite(value) for value in values)
        log.curves[text_of(name, 100)] = [number(value) for value in values]
    return log


def _lines(file: Path, log: Log) -> tuple[Iterator[bytes], int]:
    """The lines to parse, and the stride between them; a last line without a line end is half written."""
    size = file.stat().st_size
    skipping = max(1, -(-size // MOST_PARSED))

    def each() -> Iterator[bytes]:
        with open_regular(file) as stream:
            place = 0

            def piece() -> bytes:
                # What a run, or somebody else, adds while this is read is left out.
                return stream.readline(max(0, min(LONGEST_LINE, size - stream.tell())))

            while line := piece():
                whole = line.endswith(b"\n")
                while not line.endswith(b"\n") and (line := piece()):
                    pass
                if not whole:
                    log.damaged += 1
                elif place % skipping == 0:
                    yield line
                place += 1

    return each(), skipping


def _record(line: bytes) -> dict[str, Any] | None:
    """The numbers of a record, without nested values; None if the line is not a record."""
    try:
        record = json.loads(line)
        step = record["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if type(step) is not int or not 0 <= step < 2**53:
        return None
    return {name: value for name, value in record.items() if type(value) in (int, float) or value is None}
