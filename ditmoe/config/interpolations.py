"""How many values the interpolations of YAML files stand for, before OmegaConf resolves them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

Name = tuple[str, ...]
_REFERENCE = re.compile(r"\$\{([^${}]+)")
_DYNAMIC = re.compile(r"\$\{(?:[^${}:]*|oc\.select:[^${}]*)\$\{")
ROUNDS = 64
"""Levels of references to references that are followed."""


def check(contents: Iterable[Any], most: int) -> None:
    """Check the contents of files that may refer to each other.

    A reference counts as the largest value that it may refer to: one whose name, as far as its file tells it, is the
    end of the reference.

    Raises:
        ValueError: if one text stands for more than `most` values, or the name of a reference is itself interpolated.
    """
    values = _Values()
    for content in contents:
        values.add(content, ())
    references = values.references(most)
    sizes = [1] * len(values.texts)
    for _ in range(ROUNDS):
        last = sizes
        sizes = [
            1 + sum(max(sum(last[text] for text in value) for value in each) for each in of_text)
            for of_text in references
        ]
        if max(sizes, default=0) > most:
            raise ValueError(f"an interpolation must stand for at most {most} values")
        if sizes == last:
            return


class _Values:
    """All texts of some files, and which of them each name stands for."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.named: dict[str, list[tuple[Name, list[int]]]] = defaultdict(list)

    def add(self, value: Any, name: Name) -> list[int]:
        """Add a value with all below it; returns the numbers of its texts."""
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            below = [self.add(inner, (*name, *str(key).split("."))) for key, inner in items]
            found = [number for numbers in below for number in numbers]
        else:
            self.texts.append(value if isinstance(value, str) else "")
            found = [len(self.texts) - 1]
        if name:
            self.named[name[-1]].append((name, found))
        return found

    def references(self, most: int) -> list[list[list[list[int]]]]:
        """Per text and reference in it, the values that may be meant, each as the numbers of its texts."""
        found, total = [], 0
        for number, text in enumerate(self.texts):
            if _DYNAMIC.search(text):
                raise ValueError(f"an interpolation must name what it stands for, got {text[:80]}")
            of_text = []
            for reference in _names(text):
                meant = [
                    value
                    for name, value in self.named.get(reference[-1], ())
                    if reference[-len(name) :] == name and number not in value
                ]
                total += 1 + sum(map(len, meant))
                if total > most:
                    raise ValueError(f"its interpolations must stand for at most {most} values")
                of_text += [meant] if meant else []
            found.append(of_text)
        return found


def _names(text: str) -> Sequence[Name]:
    """Names that a text refers to; the arguments of a resolver may be names, too."""
    words = [word for found in _REFERENCE.findall(text) for word in re.split(r"[:,\s]", found)]
    names = [tuple(part for part in re.split(r"[.\[\]]", word) if part) for word in words]
    return [name for name in names if name]
