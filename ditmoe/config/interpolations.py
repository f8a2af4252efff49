"""How many values the interpolations of YAML files stand for, before OmegaConf resolves them."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Name = tuple[str, ...]
_REFERENCE = re.compile(r"\$\{([^${}]+)")
_DYNAMIC = re.compile(r"\$\{(?:[^${}:]*|oc\.select:[^${}]*)\$\{")
ROUNDS = 64
"""Levels of references to references that are followed."""


def check(files: Sequence[tuple[Name, Any]], moved: bool, most: int) -> None:
    """Check the contents of files that may refer to each other.

    A reference counts as the largest value of its name; with `moved`, as the largest of those whose name within their
    file is the end of its own.

    Args:
        files: of each, the section that Hydra puts it into, and its content.
        moved: whether a defaults list puts files into other sections than these.

    Raises:
        ValueError: if one text stands for more than `most` values, or the name of a reference is itself interpolated.
    """
    values = _Values(moved)
    for section, content in files:
        values.add(content, () if moved else section)
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

    def __init__(self, moved: bool) -> None:
        self.moved = moved
        self.texts: list[str] = []
        self.names: list[Name] = []
        self.named: dict[str, list[tuple[Name, list[int]]]] = defaultdict(list)

    def add(self, value: Any, name: Name) -> list[int]:
        """Add a value with all below it; returns the numbers of its texts."""
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            below = [self.add(inner, (*name, *str(key).split("."))) for key, inner in items]
            found = [number for numbers in below for number in numbers]
        else:
            self.texts.append(value if isinstance(value, str) else "")
            self.names.append(name)
            found = [len(self.texts) - 1]
        if name:
            self.named[name[-1]].append((name, found))
        return found

    def references(self, most: int) -> list[list[list[list[int]]]]:
        """Per text and reference in it, the values that may be meant, each as the numbers of its texts."""
        found, total = [], 0
        for number, (text, own) in enumerate(zip(self.texts, self.names, strict=True)):
            if _DYNAMIC.search(text):
                raise ValueError(f"an interpolation must name what it stands for, got {text[:80]}")
            of_text = []
            for reference in _names(text, () if self.moved else own):
                meant = [
                    value
                    for name, value in self.named.get(reference[-1], ())
                    if (reference[-len(name) :] if self.moved else reference) == name and number not in value
                ]
                total += 1 + sum(map(len, meant))
                if total > most:
                    raise ValueError(f"its interpolations must stand for at most {most} values")
                of_text += [meant] if meant else []
            found.append(of_text)
        return found


def _names(text: str, own: Name) -> Sequence[Name]:
    """Names that a text refers to; the arguments of a resolver may be names, too.

    Args:
        own: of the text, from which names with leading dots count.
    """
    found = []
    for word in (word for inner in _REFERENCE.findall(text) for word in re.split(r"""[:,\s'"]""", inner)):
        up = len(word) - len(word.lstrip("."))
        above = own[: max(0, len(own) - up)] if up else ()
        if parts := tuple(part for part in re.split(r"[.\[\]]", word) if part):
            found.append((*above, *parts))
    return found
