"""The contents of a run's JSON files: metrics, configuration, expert analysis."""

import json
import math
from collections.abc import Mapping
from typing import Any

from ditmoe.reporting.budget import text_of

MOST_ROWS = 600
"""Most metrics, and most values of a configuration."""
MOST_OTHERS = 6
"""Most reference rows beside the row of generated samples."""
APART = ("interval", "protocol", "notes")
KINDS = ("time", "place", "class", "time given place", "class given place")
"""Dependences measured by `analyze` that are shown."""


def metrics(content: Any) -> dict[str, Any]:
    """The content of metrics.json: each metric with its interval and its reference rows, such as oracle and floor.

    Raises:
        ValueError: if the content is not an object.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it must be an object with metrics, got {type(content).__name__}")
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
    """A finite number, rounded to six digits; None for any other value."""
    if type(value) not in (int, float):
        return None
    try:
        short = float(f"{value:.6g}")
    except OverflowError:
        return None
    return short if math.isfinite(short) else None


def flat(node: Any, most: int = MOST_ROWS) -> list[list[str]]:
    """Dotted names and values of nested sections; a list counts as one value."""
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
    """The content of analysis.json: mutual information of routing with time, place and class, by layer, in bits."""
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
