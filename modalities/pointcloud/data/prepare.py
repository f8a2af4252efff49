"""Makes a data set of a person's own shapes: a folder of meshes or clouds in, the layout of PC15k out."""

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ditmoe.checkpoint import replacing
from ditmoe.outside import check_number, files_below, is_regular, open_regular, printable, read_regular
from modalities.pointcloud.data.axes import check_up, turned
from modalities.pointcloud.data.catalogue import SCANS
from modalities.pointcloud.data.formats import (
    SET_SUFFIXES,
    TEXT_SUFFIXES,
    count_shapes,
    read_surface,
    write_npy,
)
from modalities.pointcloud.data.partial import scan
from modalities.pointcloud.data.text import is_columns
from modalities.shared.datasets import SPLITS
from modalities.shared.isolation import num_cores, run_isolated
from modalities.shared.layout import arrange, draw, drawn_by_name, sources
from modalities.shared.understood import KIND, OUTSIDE, Ignored

LARGEST_RECORD, LARGEST_NOTE = 2**28, 2**16
"""Bytes of prepare.json, and of what is to be said of a shape."""
FEW = 2048
"""Points of a sample in the default configuration; clouds with less are named."""
DEFAULTS = {"up": "y", "min_points": 1, "views": 0}
MOST_VIEWS = 1000
GENERAL = re.compile("(?i)(model|mesh|object|shape|points?|point_?cloud|scan)s?(_normalized|_watertight)?")
"""File names that many shapes have; the folder above, as ShapeNet's id, is their name."""


@dataclass(frozen=True)
class Job:
    """One file to sample: where it is, where its points go, and its class and split."""

    source: Path
    target: Path
    name: str
    category: str
    split: str
    num_points: int
    seed: int
    item: int | None = None
    up: str = "y"
    min_points: int = 1
    views: int = 0

    @property
    def scans(self) -> list[Path]:
        """Where its views go."""
        *_, category, split, name = self.target.parts
        folder = self.target.parents[2] / SCANS / category / split
        return [folder / f"{Path(name).stem}-{view}.npy" for view in range(self.views)]


class UnwritableError(OSError):
    """What was to be written could not be, which is not the fault of the file that was read."""


def prepare(
    source: Path,
    out: Path,
    *,
    num_points: int = 15_000,
    split: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    workers: int | None = None,
    timeout: float = 300.0,
    up: str = "y",
    min_points: int = 1,
    views: int = 0,
) -> dict[str, Any]:
    """Sample the shapes below `source` and write them to `out` as `<class>/<split>/<name>-<hash>.npy`.

    Folders of the first level are classes; files at the top are of the class "shape". Each shape becomes
    (N, 3) float32 points, centred on their bounding box, whose diagonal is 1; N is `num_points`, or less
    where a cloud has less. Folders named train, val or test, at the top or in each class as in ModelNet, are the
    splits (`layout.arrange`); otherwise `split` gives the parts of each, taken by a hash of the relative
    path (`layout.draw`). The axis `up` of the files becomes y. A file of several clouds (S, N, 3) gives as many shapes;
    clouds of less than `min_points` points are left out. What is in `out` already is kept, so that an interrupted run
    goes on; files with the same content count once.

    Of each shape so many `views` are written, too, the points that a scan from one side would see (`partial.seen_from`)
    as `scans/<class>/<split>/<name>-<hash>-<view>.npy`, in the shape's own units. They are for tests of completion
    (docs/given.md); training does not take them for shapes and makes its own.

    A file that is unreadable, crashes its process or takes more than `timeout` seconds is left out and named
    in the report, which is returned and written to `prepare.json`. ValueError where nothing can be read,
    where `out` cannot be written, lies in `source` or was prepared in another way.
    """
    began = time.monotonic()
    if num_points < 1 or len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6:
        raise ValueError(
            f"num_points must be positive and split sum to 1, got {num_points} and {tuple(split)}"
        )
    check_up(up)
    check_number("views", views, 0, MOST_VIEWS, whole=True)
    source, out = source.resolve(), out.resolve()
    ignored = Ignored()
    files = _find(source, out, ignored)
    setting = {"source": printable(source), "num_points": num_points, "split": list(split), "seed": seed}
    setting |= {"up": up, "min_points": min_points, "views": views}
    _claim(out, setting)
    unique, duplicates = _unique(files)
    places, origin = _places(unique, source, split, seed, ignored)
    jobs = [
        replace(
            _job(path, source, out, num_points, place, seed, item), up=up, min_points=min_points, views=views
        )
        for path, place in places.items()
        for item in _items(path)
    ]
    for job in jobs:
        _clear_elsewhere(job)
    kept = {job.name: job for job in jobs if job.target.exists()}
    unreadable = _sample_all([job for job in jobs if job.name not in kept], len(kept), workers, timeout)
    done = [job for job in jobs if job.name not in unreadable]
    counts = {job.category: dict.fromkeys(SPLITS, 0) for job in done}
    for job in done:
        counts[job.category][job.split] += 1
    report = setting | {
        "counts": counts,
        "written": len(done) - len(kept),
        "kept": len(kept),
        "unreadable": unreadable,
        "notes": _read_notes(done),
        "duplicates": {
            _key(_name(path, source)): _key(_name(first, source)) for path, first in duplicates.items()
        },
        "splits": origin,
        "ignored": ignored.lines(),
        "seconds": round(time.monotonic() - began, 1),
    }
    _write_json(out / "prepare.json", report)
    if not done:
        name, reason = next(iter(unreadable.items()))
        raise ValueError(f"source must hold readable shapes, got {len(unreadable)} others: {name}: {reason}")
    print(_summary(report, out))
    return report


def _find(source: Path, out: Path, ignored: Ignored) -> list[Path]:
    """The files to read, sorted by relative path."""
    if not source.is_dir():
        state = "is a file" if source.exists() else "is not there"
        raise ValueError(f"source must be a folder, got {source}, which {state}")
    if out.is_relative_to(source):
        raise ValueError(f"out must not lie in source, got {out} in {source}")
    files = []
    for path in files_below(source, hidden=True, special=True, skip=ignored.is_hidden):
        if _may_be_shape(path):
            files.append(path)
        else:
            ignored.add(KIND, path.name)
    if not files:
        raise ValueError(
            f"source must hold shapes ({' '.join(SET_SUFFIXES)}), got none in {source}"
            + "".join(f"; {line}" for line in ignored.lines())
        )
    return sorted(files, key=lambda p: _name(p, source))


def _may_be_shape(path: Path) -> bool:
    """By its suffix, and a text by its beginning: a README is no cloud that cannot be read."""
    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES or suffix in (".xyz", ".pts"):
        return suffix in SET_SUFFIXES
    try:
        with open_regular(path) as stream:
            return is_columns(stream.read(2**16))
    except (OSError, ValueError):
        return True


def _items(path: Path) -> list[int | None]:
    count = count_shapes(path)
    return [None] if count is None else list(range(count))


def _name(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()


def _key(name: str) -> str:
    r"""A name as a report has it: on one line, no two alike; backslashes are doubled, a byte of no text is \xe9."""
    return "".join(
        # else the byte 0x85, which is no UTF-8, would look like the letter of that number
        f"\\u{ord(c):04x}" if "\x80" <= c <= "\xff" and printable(c) != c else printable(c)
        for c in name.replace("\\", "\\\\")
    )


def _claim(out: Path, setting: dict[str, Any]) -> None:
    """Write the setting into `out`, or see that the one there is the same."""
    record = out / "prepare.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            _write_json(record, setting)
        text = read_regular(record, LARGEST_RECORD)
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {out}: {error.strerror}") from error
    try:
        there = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{record} must be the report of an earlier run, got something else") from error
    if other := [
        f"{key} {there.get(key)}" for key in setting if there.get(key, DEFAULTS.get(key)) != setting[key]
    ]:
        raise ValueError(
            f"out must be new or prepared in the same way, got {out}, made with {', '.join(other)}"
        )


def _unique(files: list[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """Files of different content in their order, and duplicate -> first; only equal sizes are read."""
    sizes = Counter(map(_size, files))
    first: dict[Hashable, Path] = {}
    duplicates: dict[Path, Path] = {}
    for path in files:
        key: Hashable = path
        if sizes[_size(path)] > 1:
            # A file that cannot be opened is left to be reported with the other unreadable ones.
            with suppress(OSError, ValueError), open_regular(path) as stream:
                key = hashlib.file_digest(stream, "sha256").digest()
        if first.setdefault(key, path) is not path:
            duplicates[path] = first[key]
    return [path for path in files if path not in duplicates], duplicates


def _size(path: Path) -> int:
    return path.stat().st_size if is_regular(path) else -1


def _places(
    files: list[Path], source: Path, shares: Sequence[float], seed: int, ignored: Ignored
) -> tuple[dict[Path, tuple[str, str]], str]:
    """Class and split of each file that is data, and from what the splits come."""
    names = [_name(path, source) for path in files]
    layout = arrange([tuple(name.split("/")) for name in names])
    kept: list[tuple[Path, str, str | None]] = []
    for path, place in zip(files, layout.places, strict=True):
        if place is None:
            ignored.add(OUTSIDE, path.name)
        else:
            kept.append((path, place.category or "shape", place.split))
    origin = layout.origin
    splits = [split or "" for *_, split in kept]
    if not origin:
        own = sources([tuple(_name(path, source).split("/")) for path, *_ in kept])
        keys = [f"{seed}:{key}" for key in own]
        splits, moved = draw(keys, shares, [category for _, category, _ in kept])
        origin = drawn_by_name(moved, sum(n for n in Counter(keys).values() if n > 1), shares)
    return {path: (category, split) for (path, category, _), split in zip(kept, splits, strict=True)}, origin


def _job(
    path: Path,
    source: Path,
    out: Path,
    num_points: int,
    place: tuple[str, str],
    seed: int,
    item: int | None = None,
) -> Job:
    """Seed and target follow from the relative path, so that they outlast other files."""
    (category, part), name = place, _name(path, source)
    *folders, _ = name.split("/")
    name += "" if item is None else f"/{item:04d}"
    digest = hashlib.sha256(os.fsencode(f"{seed}:{name}")).digest()
    own_seed = int.from_bytes(digest[8:16], "big")
    own = [folder for folder in folders[1:] if folder.lower() not in ("models", *SPLITS)]
    stem = own[-1] if own and GENERAL.fullmatch(path.stem) else path.stem
    stem = re.sub(r"[^\w.-]+", "_", stem)[:80] + ("" if item is None else f"-{item:04d}")
    target = out / category / part / f"{stem}-{digest[:4].hex()}.npy"
    return Job(path, target, _key(name), _key(category), part, num_points, own_seed, item)


def _clear_elsewhere(job: Job) -> None:
    """A shape is in one split: what an earlier run wrote into another one, when the set was smaller, goes."""
    for split in set(SPLITS) - {job.split}:
        (job.target.parents[1] / split / job.target.name).unlink(missing_ok=True)
        for path in job.scans:
            (path.parents[1] / split / path.name).unlink(missing_ok=True)


def _sample_all(todo: list[Job], kept: int, workers: int | None, timeout: float) -> dict[str, str]:
    """Sample each job; gives the reasons of those that failed."""
    reasons: dict[str, str] = {}
    ended = run_isolated(_sample, todo, workers or num_cores(), lambda job: timeout)
    for job, error in tqdm(ended, "prepare", len(todo) + kept, unit="shape", initial=kept, disable=not todo):
        if isinstance(error, UnwritableError):
            raise error
        if error is not None:
            reasons[job.name] = printable(error).removeprefix(f"{printable(job.source)}: ")
    return dict(sorted(reasons.items()))


def _notes_of(job: Job) -> Path:
    """Where it is kept what is to be said of a shape, for the report of a later run."""
    return job.target.parents[2] / ".notes" / f"{job.target.stem}.txt"


def _read_notes(jobs: list[Job]) -> dict[str, str]:
    """What is to be said of shapes that were written, now or earlier."""
    files = {job.name: _notes_of(job) for job in jobs}
    return {
        name: printable(read_regular(file, LARGEST_NOTE).decode(errors="replace"))
        for name, file in sorted(files.items())
        if file.exists()
    }


def _sample(job: Job) -> None:
    notes: list[str] = []
    points = turned(read_surface(job.source, job.num_points, job.seed, notes.append, job.item), job.up)
    if len(points) < job.min_points:
        raise ValueError(f"a cloud must have min_points = {job.min_points} points, got {len(points)}")
    if len(points) < FEW:
        notes.append(f"only {len(points)} points")
    low, high = points.min(0), points.max(0)
    diagonal = float(np.linalg.norm(high - low))
    if not 0 < diagonal < np.inf:
        raise ValueError(f"points must have an extent, got a bounding-box diagonal of {diagonal}")
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        if notes:
            _notes_of(job).parent.mkdir(exist_ok=True)
            with replacing(_notes_of(job)) as stream:
                stream.write("; ".join(notes).encode(errors="replace"))
        else:
            _notes_of(job).unlink(missing_ok=True)
        points = ((points - (low + high) / 2) / diagonal).astype(np.float32)
        for view, path in enumerate(job.scans):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_npy(path, points[scan(points, np.random.default_rng([job.seed, view]))])
        write_npy(job.target, points)
    except OSError as error:
        raise UnwritableError(error.errno, error.strerror, error.filename or str(job.target)) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as stream:
        stream.write(json.dumps(content, indent=1).encode() + b"\n")


def _summary(report: dict[str, Any], out: Path) -> str:
    counts, unreadable = report["counts"], report["unreadable"]
    width = max(map(len, counts))
    lines = [f"{'':{width}} {' '.join(f'{split:>6}' for split in SPLITS)}"]
    for category, row in sorted(counts.items()):
        lines.append(f"{category:{width}} {' '.join(f'{row[split]:6}' for split in SPLITS)}")
    lines += [f"note: {name}: {text}" for name, text in list(report["notes"].items())[:5]]
    lines += [f"{len(report['notes'])} files with notes"] * (len(report["notes"]) > 5)
    lines += [f"splits: {report['splits']}", *(f"ignored: {line}" for line in report["ignored"])]
    lines += [f"unreadable: {name}: {reason}" for name, reason in list(unreadable.items())[:5]]
    lines.append(
        f"{report['written']} shapes written to {out} in {report['seconds']} s, {report['kept']} kept, "
        f"{len(report['duplicates'])} duplicate and {len(unreadable)} unreadable files left out "
        "(listed in prepare.json)"
    )
    return "\n".join(map(printable, lines))
