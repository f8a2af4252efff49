"""What stands in a run's JSON: the report of its evaluation, its configuration, what its experts do."""

import json
import math
from collections.abc import Mapping
from typing import Any

from ditmoe.reporting.budget import text_of

MOST_ROWS = 600
"""Of metrics, and of values of a configuration."""
MOST_OTHERS = 6
"""Rows beside that of what was generated."""
APART = ("interval", "protocol", "notes")
KINDS = ("time", "place", "class", "time given place", "class given place")
"""What the choice of an expert may depend on, of those that `analyze` measures."""


def metrics(content: Any) -> dict[str, Any]:
    """metrics.json: each metric with its interval and its value in the other rows, such as oracle and floor.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(content, dict):
        raise ValueError("it is no report of an evaluation")
    intervals = content.get("interval")
    others: dict[str, dict[str, Any]] = {}
    for name, row in content.items():
        if name not in APART and isinstance(row, dict) and len(others) < MOST_OTHERS:
            others[text_of(name, 40)] = {
                key: value for key, value in row.items() if number(value) is not None
            }
    rows: list[dict[str, Any]] = []
    for name, value in content.items():
        if len(rows) >= MOST_ROWS:
            break
        if name in APART or number(value) is None:
            continue
        low_high = intervals.get(name) if isinstance(intervals, dict) else None
        within = [number(each) for each in low_high] if isinstance(low_high, list) else []
        rows.append(
            {
                "name": text_of(name, 80),
                "value": number(value),
                "interval": within if len(within) == 2 and None not in within else None,
                "rows": {row: number(values[name]) for row, values in others.items() if name in values},
            }
        )
    notes = content.get("notes")
    return {
        "rows": rows,
        "others": list(others),
        "protocol": flat(content.get("protocol"), 60),
        "notes": [text_of(note, 600) for note in notes[:40]] if isinstance(notes, list) else [],
    }


def number(value: Any) -> float | None:
    """A finite number in six digits; None for all else."""
    if type(value) not in (int, float):
        return None
    try:
        short = float(f"{value:.6g}")
    except OverflowError:
        return None
    return short if math.isfinite(short) else None


def flat(node: Any, most: int = MOST_ROWS) -> list[list[str]]:
    """Dotted names and values of nested sections; a list is one value."""
    found: list[list[str]] = []

    def walk(node: Any, name: str, depth: int) -> None:
        if len(found) >= most:
            return
        if isinstance(node, Mapping) and node and depth < 12:
            for key, inner in node.items():
                walk(inner, f"{name}.{key}" if name else str(key), depth + 1)
        elif name:
            found.append([text_of(name, 120), text_of(node if isinstance(node, str) else _json(node))])

    walk(node, "", 0)
    return found


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return str(value)


def dependence(content: Any) -> dict[str, Any]:
    """analysis.json: bits that the choice of an expert shares with time, place and class, of each layer."""
    content = content if isinstance(content, dict) else {}
    found, measured = [], content.get("dependence")
    for kind in KINDS:
        one = measured.get(kind) if isinstance(measured, dict) else None
        bits, chance = (one.get(key) if isinstance(one, dict) else None for key in ("bits", "p"))
        if isinstance(bits, list) and isinstance(chance, list) and len(bits) == len(chance):
            layers = [[number(b), number(p)] for b, p in zip(bits[:64], chance, strict=False)]
            found.append({"of": kind, "layers": layers})
    blocks = content.get("blocks")
    names = [n for n in blocks[:64] if type(n) is int] if isinstance(blocks, list) else []
    return {"dependence": found, "blocks": names, "protocol": flat(content.get("protocol"), 40)}
