"""Patterns of tokenizers are searched for in a time that does not grow with every further letter."""

import pytest

from ditmoe.checkpoint.patterns import ways_of
from ditmoe.checkpoint.tokenizer_rules import MOST_OF_ONE, check_patterns

PUBLISHED = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "CLIP": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "SigLIP": r" {2,}",
    "Qwen 2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",
    "GPT-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|"
    r"'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "BLOOM": r" ?[^(\s|[.,!?…。])]+",
    "Chinese": r"[一-龥぀-ゟ]+",
}
ENDLESS = [
    r"(?:a|a){22}\d", r"(a|a)*$", r"(a+)+$", r"(?:a+)+", r"^(([a-z])+.)+[A-Z]", r"(.*?,){25}P", "(?:a|a)" * 22 + r"\d",
    "a?" * 22 + r"\d", "a*" * 6 + r"\d", r"a*a*a*\d", r"(?=(a+)+$)b", r"((a*)*)*b", "(?:a|a)" * 22 + "[",
    r"(?<x>a|b|ab)+c", "(" * 100 + "a" + ")" * 100, r"a{0,3000}a{0,3000}b", r"\p{L}*\p{L}*\p{L}*\p{L}*b",
]  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_patterns_are_few_ways(name: str) -> None:
    assert 1 <= ways_of(PUBLISHED[name]) <= 360_000
    rule = {"type": "Split", "pattern": {"Regex": PUBLISHED[name]}}
    check_patterns({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [rule] * 3}}, "tokenizer.json")


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_of_many_ways_are_refused(pattern: str) -> None:
    assert ways_of(pattern) > MOST_OF_ONE
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        rules = {part: {"type": "Sequence", "rules": [{"type": "Replace", "pattern": {"Regex": pattern}}]}}
        with pytest.raises(ValueError, match=r"^tokenizer.json must have patterns that match in at most"):
            check_patterns(rules, "tokenizer.json")


def test_the_ways_of_all_patterns_count_together() -> None:
    rule = {"pattern": {"Regex": PUBLISHED["GPT-4o"]}}
    with pytest.raises(ValueError, match=r"in at most 2097152 ways, got"):
        check_patterns({"pre_tokenizer": [rule] * 10}, "tokenizer.json")


def test_letters_and_classes_are_one_way() -> None:
    for pattern in (
        "",
        "a",
        r"\(\|\)",
        "[a|b(*)+]",
        r"[^\]|]",
        r"[\p{L}&&[^a|b]]",
        r"\p{Lu}\x{41}",
        "(?:abc)",
        "()",
        "a|",
    ):
        assert ways_of(pattern) <= 2, pattern
    for broken in ("(", ")", "[", "*", "a**", "{2}", "\\", "(?", "]", "|"):
        assert ways_of(broken) >= 1


def test_what_is_no_tokenizer_has_no_patterns() -> None:
    for content in (
        {},
        {"normalizer": None},
        {"model": {"vocab": {"Regex": 3}}},
        {"normalizer": {"Regex": ["(a+)+"]}},
    ):
        check_patterns(content, "tokenizer.json")
