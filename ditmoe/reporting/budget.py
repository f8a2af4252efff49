"""How much of a run goes onto its page: every piece is counted as it will stand there."""

import json
from pathlib import Path
from typing import Any

from ditmoe.outside import printable

LONGEST = 400
"""Letters of a stranger's text; what is cut ends in dots."""


def encoded(node: Any) -> str:
    """JSON in ASCII that may stand within a script element: nothing in it ends one, or begins a comment."""
    text = json.dumps(node, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def text_of(value: object, longest: int = LONGEST) -> str:
    """A stranger's text, or a value, as it may be shown: one line, of bounded length."""
    text = printable(str(value)[: longest + 1])  # letter by letter: what is cut anyway is not looked at
    return text if len(text) <= longest else f"{text[:longest]}…"


class Budget:
    """Bytes that are left.

    Args:
        size: of all.
    """

    def __init__(self, size: int) -> None:
        self.left = size

    def part(self, share: float) -> "Budget":
        """A budget of a share of what is left, which is not taken from this one."""
        return Budget(int(share * self.left))

    def take(self, node: Any) -> bool:
        """Count a piece of the page, if there is room for it."""
        size = len(encoded(node)) + 1
        if size > self.left:
            return False
        self.left -= size
        return True

    def keep(self, nodes: list[Any]) -> list[Any]:
        """The first of these for which there is room."""
        kept = []
        for node in nodes:
            if not self.take(node):
                break
            kept.append(node)
        return kept


def within(run: Path, *names: str) -> Path | None:
    """A file or folder of a run, or None if there is none, or a link on the way to it, which may lead anywhere."""
    path = run
    for name in names:
        path = path / name
        if path.is_symlink():
            return None
    return path if path.exists() else None
