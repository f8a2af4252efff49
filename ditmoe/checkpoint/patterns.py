"""How many ways a regular expression of a tokenizer can match, before a search gives up at one letter of a text.

Tokenizers search by backtracking: `(a|a){22}` tries four million ways at each letter, which took seconds for a short
caption, and minutes for a long one.
"""

import re
from dataclasses import dataclass
from math import log, prod
from typing import cast

_REPEATS = 100
"""Times that `*`, `+` and `{2,}` are taken to repeat; in captions of thousands of letters they do so more often."""
_TOKEN = re.compile(r"\\[pPx]\{[^}]*\}|\\.|\(\??|\{(\d*)(,?)(\d*)\}|.", re.DOTALL)
"""A letter, the start of a group, or how often what is before it is repeated."""
_LAZY = re.compile(r"[?+]")
_DEEPEST, _MOST = 50, 1e150


def ways_of(pattern: str) -> float:
    """Upper bound of the ways in which a pattern can match at one letter; deeply nested ones are beyond any limit."""
    open_groups = [_Group()]
    at = 0
    while at < len(pattern):
        group, found = open_groups[-1], cast(re.Match[str], _TOKEN.match(pattern, at))
        token, at = found[0], found.end()
        if token in "*+?" or (token[0] == "{" and len(token) > 1):
            group.last = _repeated(group.last, _times(token, found))
            if mark := _LAZY.match(pattern, at):
                at = mark.end()
        elif token == "|":
            group.closed, group.before, group.last = group.ways, 1.0, 1.0
        elif token[0] == "(":
            if len(open_groups) > _DEEPEST:
                return _MOST
            open_groups.append(_Group())
        elif token == ")" and len(open_groups) > 1:
            open_groups.pop()
            open_groups[-1].add(group.ways)
        else:
            at = _end_of_class(pattern, at) if token == "[" else at
            group.add(1.0)
    return min(_MOST, prod(group.ways for group in open_groups))


@dataclass
class _Group:
    """The ways of the alternatives of a group before this one, of this one before its last part, and of that."""

    closed: float = 0.0
    before: float = 1.0
    last: float = 1.0

    @property
    def ways(self) -> float:
        return min(_MOST, self.closed + self.before * self.last)

    def add(self, ways: float) -> None:
        """Add a part to this alternative."""
        self.before, self.last = min(_MOST, self.before * self.last), ways


def _times(token: str, found: re.Match[str]) -> int:
    if token == "?":
        return 1
    if token in "*+" or (found[2] and not found[3]):
        return max(_REPEATS, min(10**6, int(found[1] or 0)) if token[0] == "{" else 0)
    return min(10**6, int(found[3] or found[1] or 0))


def _repeated(ways: float, times: int) -> float:
    """The ways of a part that is repeated up to so many times, in each of its ways each time."""
    if ways <= 1 or times == 1:
        return 1 + ways * times
    return 2 * ways**times if times * log(ways) < 300 else _MOST


def _end_of_class(pattern: str, at: int) -> int:
    """Where a class of letters ends whose bracket was opened before an offset; classes may hold others."""
    depth, first = 1, True
    while at < len(pattern) and depth:
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
        elif pattern[at] == "]" and not (first and depth == 1):
            depth -= 1
        first = first and pattern[at] == "^"
        at += 1
    return at
