"""The samples in a run's folder, encoded for a page."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ditmoe.given import GIVEN
from ditmoe.modality import Files, Shown
from ditmoe.outside import Patience, file_name, read_json
from ditmoe.reporting.budget import Budget, text_of, within
from ditmoe.reporting.pictures import held, packed

MOST_SETS, MOST_LISTED = 40, 200
MOST_UNREADABLE = 100
"""Most unreadable samples, over all sets, before reading stops: each of them may take a while."""
SHEETS = ("samples", "view")


@dataclass
class Found:
    """The files of one sample, which differ only in their suffix.

    Attributes:
        number: in the file's name; None without one.
        kind: the class in the file's name.
    """

    name: str
    number: int | None
    kind: str
    files: list[Path] = field(default_factory=list)


def sample_sets(
    run: Path,
    kind: type[Files] | None,
    classes: Sequence[str],
    most: int,
    budget: Budget,
    patience: Patience | None = None,
) -> list[dict[str, Any]]:
    """The sets of a run's samples, from training and from `sample`.

    Args:
        kind: the run's modality; None: files are only listed.
        classes: class names, which file names contain in a safe form.
        most: most samples of all sets together, shared evenly.
        budget: bytes of all sets.
        patience: limit on the time; samples that remain when it is over are left out.
    """
    labels = {file_name(name): text_of(name, 80) for name in classes}
    sets = [(folder, *listed(folder)) for folder in set_folders(run)]
    shares = shared(most, [len(samples) for _, samples, _ in sets])
    unreadable = MOST_UNREADABLE // max(1, len(sets))
    patience = patience or Patience()
    patience.grow(
        file
        for (_, samples, _), share in zip(sets, shares, strict=True)
        for s in samples[:share]
        for file in s.files
    )
    return [
        one_set(run, folder, samples, kind, labels, share, budget, unreadable, patience) | {"links": links}
        for (folder, samples, links), share in zip(sets, shares, strict=True)
    ]


def shared(most: int, counts: Sequence[int]) -> list[int]:
    """How many samples to take from each set: the same number from all, except from smaller sets."""
    shares = dict.fromkeys(range(len(counts)), 0)
    for done, at in enumerate(sorted(shares, key=lambda at: counts[at])):
        shares[at] = min(counts[at], most // (len(counts) - done))
        most -= shares[at]
    return list(shares.values())


def set_folders(run: Path) -> list[Path]:
    """The folders of sample sets, `samples` first."""
    with os.scandir(run) as entries:
        names = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
    mine = sorted(name for name in names if name == "samples" or name.startswith("samples-"))
    return [run / name for name in mine[:MOST_SETS]]


def one_set(
    run: Path,
    folder: Path,
    samples: Sequence[Found],
    kind: type[Files] | None,
    labels: Mapping[str, str],
    most: int,
    budget: Budget,
    most_unreadable: int,
    patience: Patience,
) -> dict[str, Any]:
    """One set: its samples, how many were left out and why, and its given part."""
    content: dict[str, Any] = {"folder": text_of(folder.name, 200), "items": [], "total": len(samples)}
    given = _given(run, folder, kind)
    if given is not None and budget.take(form := packed(given)):
        content["given"] = form
    prompts, unreadable, unknown = _prompts(folder), 0, kind is None
    for found in samples:
        if kind is None or len(content["items"]) >= most or unreadable >= most_unreadable or patience.is_over:
            break
        try:
            shown = kind.show(found.files)
            if shown is None:
                unknown = True
                break
            item = packed(shown) | {"name": text_of(found.name, 160), "held": held(shown, given)}
        except (OSError, ValueError):
            unreadable += 1
            continue
        if found.number is not None and found.number < len(prompts):
            item["prompt"] = prompts[found.number]
        item["class"] = labels.get(found.kind, text_of(found.kind, 80))
        if not budget.take(item):
            break
        content["items"].append(item)
    content |= {"unreadable": unreadable, "unknown": unknown}
    if unknown:
        content["files"] = budget.keep([text_of(f.name, 160) for s in samples for f in s.files][:MOST_LISTED])
    return content


def listed(folder: Path) -> tuple[list[Found], int]:
    """The samples of a folder in the order of their numbers, and the number of links, which are not followed."""
    found: dict[str, Found] = {}
    with os.scandir(folder) as entries:
        each = sorted((e.name, e.is_file(follow_symlinks=False), e.is_symlink()) for e in entries)
    for name, plain, _ in each:
        path = folder / name
        if plain and path.stem not in SHEETS and name[0] != "." and path.suffix not in ("", ".json"):
            match = re.fullmatch(r"(.*)-(\d{4,9})(?:-\d+)?", path.stem, re.ASCII | re.DOTALL)
            number, kind = (int(match[2]), match[1]) if match else (None, path.stem)
            found.setdefault(path.stem, Found(path.stem, number, kind)).files.append(path)
    order = sorted(found.values(), key=lambda f: (f.number is None, f.number or 0, f.name))
    return order, sum(link for _, _, link in each)


def _prompts(folder: Path) -> list[str]:
    """The prompts of a set, from prompts.json."""
    file = within(folder, "prompts.json")
    try:
        content = read_json(file) if file else {}
    except (OSError, ValueError):
        return []
    prompts = content.get("prompts") if isinstance(content, dict) else None
    return [text_of(prompt) for prompt in prompts[:10_000]] if isinstance(prompts, list) else []


def _given(run: Path, folder: Path, kind: type[Files] | None) -> Shown | None:
    """The given part of a set; None if it was not kept or cannot be read."""
    place = within(run, GIVEN, folder.name)
    if kind is None or place is None or not place.is_dir():
        return None
    try:
        samples, _ = listed(place)
        return kind.show(samples[0].files) if samples else None
    except (OSError, ValueError):
        return None
