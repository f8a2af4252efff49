"""Quotes command-line arguments for Hydra, so that users need not know its grammar.

The value after the first `=` is parsed by the grammar first. Numbers, booleans, null, lists, sections and quoted
strings keep their meaning. Everything else is literal text: what the grammar rejects (`Стул`, `my shapes (v2)`) and
what it would change (spaces, backslashes, commas, `${}`). With --multirun, commas separate runs.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Quote, QuotedString, Sweep
from hydra.errors import HydraException

_WORD = re.compile(r"([+]{0,2}[^\W\d][\w.@/-]*)=(.+)", re.DOTALL)
_INTERPOLATION = re.compile(r"(\\*)\$\{")
_OPENING, _CLOSING = "[({", "])}"
_REFUSED = object()
LONGEST = 10_000
"""Longest argument in characters: the time of Hydra's grammar grows quadratically with the length of a list."""


@dataclass(frozen=True)
class Overrides:
    """The rules by which the arguments of a command are quoted.

    Attributes:
        is_text: whether the option of this name is always text, such as a path.
        is_choice: whether its value names a file of a group.
        is_literal: whether `${}` in its value is literal; called only if the value has one.
        many: whether --multirun is given.
    """

    is_text: Callable[[str], bool]
    is_choice: Callable[[str], bool]
    is_literal: Callable[[str], bool]
    many: bool = False

    def override(self, word: str) -> str:
        """An argument `option=value`, quoted so that Hydra reads it as the user meant; others are returned unchanged.

        Raises:
            ValueError: if it is longer than `LONGEST`.
        """
        if len(word) > LONGEST:
            name = word.partition("=")[0][:40]
            raise ValueError(f"{name} must have at most {LONGEST} characters, got {len(word)}")
        match = _WORD.fullmatch(word)
        if match is None:
            return word
        name, value, parsed = match[1].lstrip("+"), match[2], parse(match[2])
        if isinstance(parsed, Sweep | Glob) and (self.many or self.is_choice(name)):
            return word
        if self.is_choice(name):
            several = parsed if isinstance(parsed, list) else [value]
            if "${" in value or not several or not all(isinstance(x, str | QuotedString) for x in several):
                raise ValueError(f"{name} must name one of its choices, got {value}")
            if not isinstance(parsed, str | list | QuotedString) and parsed is not _REFUSED:  # -1, null, nan
                return f"{match[1]}={quoted(value)}"  # there is no such choice: Hydra lists those that exist
        literal = "${" not in value or self.is_literal(name)
        pieces = split(value) if self.many and parsed is _REFUSED else [value]
        read = _text if self.is_text(name) else _value
        return f"{match[1]}={','.join(read(piece, literal) for piece in pieces)}"

    def said(self, override: str) -> str:
        """The inverse of `override`: the argument as a user would type it."""
        match = _WORD.fullmatch(override)
        parsed = parse(match[2]) if match else _REFUSED
        if match is None or not isinstance(parsed, QuotedString):
            return override
        text = re.sub(r"(\\+)\$\{", lambda found: len(found[1]) // 2 * "\\" + "${", parsed.text)
        for value in (text, parsed.text, quoted(text, literal=False)):
            if value and self.override(f"{match[1]}={value}") == override:
                return f"{match[1]}={value}"
        return override


def parse(value: str) -> Any:
    """The value of an option as Hydra's grammar parses it; `_REFUSED` if it is a syntax error."""
    try:
        return OverridesParser.create().parse_override(f"x={value}")._value
    except (HydraException, RecursionError):  # the latter for deeply nested brackets
        return _REFUSED


def quoted(text: str, literal: bool = True) -> str:
    """Text in Hydra's quotes; with `literal`, `${}` in it is escaped."""
    if literal:
        text = _INTERPOLATION.sub(lambda found: 2 * found[1] + r"\${", text)
    return str(QuotedString(text, Quote.single).with_quotes())


def split(value: str) -> Iterator[str]:
    """Split a value at commas outside of quotes and brackets."""
    start, depth, at, balanced = 0, 0, 0, _is_balanced(value)
    while at < len(value):
        letter = value[at]
        if letter in "'\"" and not value[start:at].strip():
            end = re.compile(rf"(?<!\\){letter}\s*(?=,|$)").search(value, at + 1)
            at = end.start() if end else at
        elif balanced and letter in _OPENING + _CLOSING:
            depth += 1 if letter in _OPENING else -1
        elif letter == "," and not depth:
            yield value[start:at]
            start = at + 1
        at += 1
    yield value[start:]


def _is_balanced(value: str) -> bool:
    depth = 0
    for letter in value:
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if depth < 0:
            return False
    return depth == 0


def _text(value: str, literal: bool) -> str:
    """Quote the value of an option that is always text or null, without Hydra's own quotes."""
    if value == "null":
        return value
    parsed = parse(value)
    return quoted(parsed.text if isinstance(parsed, QuotedString) else value, literal)


def _value(value: str, literal: bool) -> str:
    """Quote the value of another option, which may be a number or a list, too."""
    parsed, inner = parse(value), value.strip()
    if isinstance(parsed, QuotedString):
        return quoted(parsed.text) if literal and "${" in value else value
    if isinstance(parsed, str):
        return value if not literal or (parsed == value and "${" not in value) else quoted(value)
    resolved = literal and "${" in value  # in a list of texts, it is resolved where the list is read
    if (parsed is _REFUSED or resolved) and inner.startswith("[") and inner.endswith("]"):
        return f"[{','.join(_value(piece.strip(), literal) for piece in split(inner[1:-1]))}]"
    return quoted(value, literal) if parsed is _REFUSED or isinstance(parsed, Sweep | Glob) else value


def mark_paths(options: dict[str, Any], words: Iterable[str], is_path: Callable[[str], bool]) -> None:
    """Restore, in composed options, paths that the grammar parsed as a number or a list.

    A leading `~/` is expanded to the user's home, which shells do in some arguments only.

    Args:
        words: the overrides `option=value` of the composition.
        is_path: whether the option of this name is a path; called only if needed.
    """
    for word in words:
        match = _WORD.fullmatch(word)
        *sections, last = match[1].lstrip("+").split(".") if match else [""]
        holder: Any = options
        for section in sections:
            holder = holder.get(section) if isinstance(holder, dict) else None
        if match is None or not isinstance(holder, dict) or (value := holder.get(last)) is None:
            continue
        text = value if isinstance(value, str) else match[2]
        home = re.match("~(/|$)", text)
        if (home or not isinstance(value, str)) and is_path(match[1].lstrip("+")):
            holder[last] = os.path.expanduser(text) if home else text
