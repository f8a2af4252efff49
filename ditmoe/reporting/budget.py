"""Size limits of a report: every part is counted in its encoded form."""

import json
from pathlib import Path
from typing import Any

from ditmoe.outside import printable

LONGEST = 400
"""Most characters of untrusted text; longer text is cut and ends in dots."""


def encoded(node: Any) -> str:
    """JSON in ASCII for a script element: it contains nothing that ends the element or starts a comment."""
    text = json.dumps(node, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def text_of(value: object, longest: int = LONGEST) -> str:
    """Untrusted text, or a value, as one printable line of bounded length."""
    text = printable(str(value)[: longest + 1])  # `printable` works by character, so cut first
    return text if len(text) <= longest else f"{text[:longest]}…"


class Budget:
    """A budget of bytes.

    Args:
        size: its size in bytes.
    """

    def __init__(self, size: int) -> None:
        self.left = size

    def part(self, share: float) -> "Budget":
        """A new budget with a share of the remaining bytes, which stay in this one."""
        return Budget(int(share * self.left))

    def take(self, node: Any) -> bool:
        """Count a part of the page; returns False, and counts nothing, if it does not fit."""
        size = len(encoded(node)) + 1
        if size > self.left:
            return False
        self.left -= size
        return True

    def keep(self, nodes: list[Any]) -> list[Any]:
        """The first of these parts that fit."""
        kept = []
        for node in nodes:
            if not self.take(node):
                break
            kept.append(node)
        return kept


def within(run: Path, *names: str) -> Path | None:
    """A file or folder of a run; None if it does not exist or its path contains a link, which could lead anywhere."""
    path = run
    for name in names:
        path = path / name
        if path.is_symlink():
            return None
    return path if path.exists() else None
