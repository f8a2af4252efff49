"""A summary of how a data set was interpreted, and of what was ignored, printed before it is used."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ditmoe.outside import TooFewError, printable
from modalities.shared.datasets import SPLITS
from modalities.shared.layout import short_split, split_word

SYSTEM = frozenset({
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "#recycle", "@eadir", "lost+found",
    "__pycache__", "system volume information", "icon\r",
})  # fmt: skip
"""Names of files and folders that operating systems leave behind, in lower case; others begin with a dot."""
HIDDEN, KIND, OUTSIDE, BESIDE = (
    "hidden or of a system", "of a kind that is not read", "outside of the splits", "beside the class folders",
)  # fmt: skip
_SHOWN = 6
LEAST = 2
"""Least samples of a split that can be measured."""


class Ignored:
    """Counts of ignored files: reason -> suffix or name -> number."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    def add(self, reason: str, name: str, by_name: bool = False) -> None:
        """Count a file under its suffix, or under its own name."""
        suffix = name if by_name else _suffix(name)
        self.counts.setdefault(reason, Counter())[printable(suffix)[:40]] += 1

    def is_hidden(self, name: str) -> bool:
        """Whether a file or folder is hidden or a system file, by its name; if so, count it."""
        if not name.startswith(".") and name.casefold() not in SYSTEM:
            return False
        self.add(HIDDEN, "._*" if name.startswith("._") else name, by_name=True)
        return True

    def visible(self, names: list[str]) -> list[str]:
        """The names, of a sorted list, that are not hidden; the others are counted."""
        first = bisect_left(names, ".")
        if not any(name[0] == "." for name in names[first : first + 1]) and SYSTEM.isdisjoint(
            map(str.casefold, names)
        ):
            return names
        return [name for name in names if not self.is_hidden(name)]

    def without(self, suffix: str) -> "Ignored":
        """The same without files of a suffix that is read after all."""
        rest = Ignored()
        for reason, of in self.counts.items():
            if kept := Counter({name: n for name, n in of.items() if (reason, name) != (KIND, suffix)}):
                rest.counts[reason] = kept
        return rest

    def lines(self) -> list[str]:
        """One line per reason."""
        found = []
        for reason, of in self.counts.items():
            most = [f"{name} {count}" for name, count in of.most_common(_SHOWN)]
            more = len(of) - _SHOWN
            found.append(
                f"{of.total()} {reason}: {', '.join(most)}{f' and {more} others' if more > 0 else ''}"
            )
        return found


def _suffix(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return f".{ending.lower()}" if stem and dot else "without a suffix"


@dataclass(frozen=True)
class Understood:
    """How a data set was interpreted.

    Attributes:
        place: where it lies.
        what: what a sample is.
        classes: class names.
        labels: labels of the samples of each split; `len(classes)` means no class.
        origin: where the splits come from.
        ignored: what was left out.
        notes: further remarks.
    """

    place: object
    what: str
    classes: Sequence[str]
    labels: Mapping[str, Sequence[int]]
    origin: str
    ignored: Ignored = field(default_factory=Ignored)
    notes: Sequence[str] = ()

    @property
    def with_captions(self) -> "Understood":
        """The same, with texts beside samples counted as captions rather than ignored."""
        return replace(self, ignored=self.ignored.without(".txt"))

    def __str__(self) -> str:
        counts = Counter(label for split in SPLITS for label in self.labels.get(split, ()))
        bare = counts.pop(len(self.classes), 0)
        shown = [f"{printable(self.classes[i])} {counts[i]}" for i in range(min(_SHOWN, len(self.classes)))]
        more = ", ..." if len(self.classes) > _SHOWN else ""
        total = sum(len(self.labels.get(split, ())) for split in SPLITS)
        classes = f"{len(self.classes)} classes" if len(self.classes) != 1 else "1 class"
        sizes = [f"{split} {len(self.labels.get(split, ()))}" for split in SPLITS]
        lines = [
            f"data     {printable(self.place)}: {total} {self.what}{'' if total == 1 else 's'}, {classes}: "
            f"{', '.join(shown)}{more}{f', {bare} without a class' if bare else ''}",
            f"splits   {', '.join(sizes)}; {self.origin}",
            *(f"ignored  {line}" for line in self.ignored.lines()),
            *(f"note     {printable(note)}" for note in [*self.notes, *self.warnings()]),
        ]
        return "\n".join(lines)

    def warnings(self) -> list[str]:
        """Warnings about what cannot be trained on or measured."""
        seen = {split: set(self.labels.get(split, ())) for split in SPLITS}
        untrained = [name for i, name in enumerate(self.classes) if i not in seen["train"]]
        found = []
        if untrained and seen["train"]:
            names = ", ".join(untrained[:_SHOWN]) + (", ..." if len(untrained) > _SHOWN else "")
            found.append(f"nothing to train on in {len(untrained)} of the classes: {names}")
        if (num := len(self.labels.get("test", ()))) < LEAST:
            found.append(f"too small to measure: test has {num} of at least {LEAST}")
        elif unmeasured := len(seen["train"] - seen["test"]):
            found.append(f"nothing in test, so nothing is measured, of {unmeasured} of the classes")
        if odd := [name for name in self.classes if split_word(name) or short_split(name)]:
            found.append(
                f"named as a split, but taken for a class, as not all beside it are splits: {', '.join(odd)}"
            )
        return found


def check_enough(num: int, split: str, what: str) -> None:
    """Refuse to measure a split with fewer than two samples.

    Raises:
        TooFewError: a ValueError that does not stop training.
    """
    if num < LEAST:
        raise TooFewError(f"an evaluation needs at least {LEAST} real {what}, {split} has {num}")
