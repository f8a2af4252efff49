"""What the rules of a stranger's tokenizer.json may do to a caption: time, length, tokens."""

import base64
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ditmoe.checkpoint.patterns import ways_of
from ditmoe.outside import printable, shown

RULES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
"""Sections with rules; the vocabulary has none, and may be large."""
MOST_GROWTH = 1000
"""How many times as long a tokenizer may make a caption before it cuts it; honest ones replace a letter by a letter."""
MOST_RULES = 256
"""Rules of a tokenizer, of which each takes a step for each word; honest ones have a dozen."""
MOST_AROUND = 256
"""Pieces that a template may put around a caption; honest ones have two to four."""
LONGEST_WORD = 1000
"""Letters of a word that WordPiece may cut, which takes quadratic time and more; honest ones cut up to 100 or 200."""
MOST_SPECIAL = 4096
"""Special tokens that a configuration may add to a tokenizer, which takes quadratic time for them; T5 has 100."""
MOST_WAYS, MOST_OF_ONE = 2**21, 2**19
"""Ways of all patterns of a tokenizer together, and of one; published ones have at most 360,000, by two repeated parts
that share letters. Three take cubic time."""


def check_tokenizer(rules: Mapping[str, Any], file: Path) -> None:
    """Refuse a tokenizer that would take hours or the machine's memory for a caption."""
    if (number := sum("type" in rule for rule in _parts_of(rules, *RULES))) > MOST_RULES:
        raise ValueError(f"{printable(file)} must have at most {MOST_RULES} rules, got {number}")
    check_patterns(rules, printable(file))
    try:
        by = _growth(rules)
    except ValueError as error:
        raise ValueError(f"{printable(file)} must hold a character map in base64: {error}") from error
    if by > MOST_GROWTH:
        raise ValueError(f"{printable(file)} must not make captions {by:.3g} times as long")
    model = rules.get("model")
    letters = model.get("max_input_chars_per_word") if isinstance(model, dict) else None
    if isinstance(letters, int) and letters > LONGEST_WORD:
        raise ValueError(
            f"{printable(file)} must cut words of at most {LONGEST_WORD} letters, got max_input_chars_per_word = "
            f"{shown(letters)}"
        )
    if (pieces := _around(rules.get("post_processor"))) > MOST_AROUND:
        raise ValueError(
            f"{printable(file)} must put at most {MOST_AROUND} tokens around a caption, got {pieces}"
        )


def check_special(config: Mapping[str, Any], file: Path) -> None:
    """Refuse more special tokens than a tokenizer can be made with in seconds."""
    for name, value in config.items():
        if isinstance(value, list | dict) and len(value) > MOST_SPECIAL and "special" in name:
            raise ValueError(
                f"{printable(file)} must have at most {MOST_SPECIAL} {printable(name)}, got {len(value)}"
            )


def check_patterns(tokenizer: Any, name: str) -> None:
    """Raise ValueError if the patterns of a tokenizer.json can match in too many ways.

    Args:
        name: of the file.
    """
    patterns = [rule.get("Regex") for rule in _parts_of(tokenizer, *RULES)]
    each = [ways_of(pattern) for pattern in patterns if isinstance(pattern, str)]
    for ways, most in ((max(each, default=0), MOST_OF_ONE), (sum(each), MOST_WAYS)):
        if ways > most:
            raise ValueError(
                f"{name} must have patterns that match in at most {most} ways, got {ways:.3g}: groups that are "
                "repeated, or parts that share letters, multiply them"
            )


def _parts_of(tokenizer: Any, *sections: str) -> Iterator[Mapping[str, Any]]:
    """All mappings within sections of a tokenizer, at any depth."""
    below = [tokenizer.get(name) for name in sections] if isinstance(tokenizer, dict) else []
    while below:
        part = below.pop()
        if isinstance(part, dict):
            yield part
        if isinstance(part, list | dict):
            below += part.values() if isinstance(part, dict) else part


def _growth(tokenizer: Any) -> float:
    """Upper bound of how many times as long a tokenizer's rules, one after the other, make a text."""
    return min(1e300, prod(_growth_of(rule) for rule in _parts_of(tokenizer, "normalizer", "pre_tokenizer")))


def _growth_of(rule: Mapping[str, Any]) -> float:
    """That of one rule: a replacement (`content`, or `replacement` of a letter), a prefix, a table of SentencePiece."""
    pattern = rule.get("pattern")
    found = pattern.get("String") if isinstance(pattern, dict) else pattern
    growth = 1.0
    for name, least in (("content", len(found) if isinstance(found, str) else 1), ("replacement", 1)):
        if isinstance(text := rule.get(name), str):
            growth *= max(1.0, len(text) / max(1, least))
    if isinstance(prefix := rule.get("prepend"), str):
        growth *= 1 + len(prefix)
    if isinstance(table := rule.get("precompiled_charsmap"), str):
        growth *= _longest(table)
    return growth


def _longest(table: str) -> int:
    """Bytes of the longest replacement in a character map of SentencePiece: a trie, then texts that end in a zero.

    Raises:
        ValueError: if it is none.
    """
    raw = base64.b64decode(table)
    return max(map(len, raw[4 + int.from_bytes(raw[:4], "little") :].split(b"\0")), default=1) or 1


def _around(rule: Any) -> int:
    """Pieces of all templates of a tokenizer, each special token by its numbers."""
    total, below = 0, [rule]
    while below:
        each = below.pop()
        if isinstance(each, list):
            below += each
        elif isinstance(each, Mapping):
            lengths: dict[str, int] = {}
            if isinstance(special := each.get("special_tokens"), Mapping):
                ids = {k: v.get("ids") for k, v in special.items() if isinstance(v, Mapping)}
                lengths = {k: len(v) for k, v in ids.items() if isinstance(v, list)}
            for piece in single if isinstance(single := each.get("single"), list) else ():
                token = piece.get("SpecialToken") if isinstance(piece, Mapping) else None
                total += max(1, lengths.get(str(token.get("id")), 1)) if isinstance(token, Mapping) else 1
            below += [value for name, value in each.items() if name == "processors"]
    return total
