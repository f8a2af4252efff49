"""Makes a data set of a person's own shapes: a folder of meshes or clouds in, the layout of PC15k out."""

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ditmoe.checkpoint import replacing
from ditmoe.outside import files_below, is_regular, open_regular, printable, read_regular
from modalities.pointcloud.data.formats import read_surface, write_npy
from modalities.shared.datasets import SPLITS
from modalities.shared.isolation import num_cores, run_isolated
from modalities.shared.layout import arrange, draw, drawn_by_name, sources
from modalities.shared.understood import KIND, OUTSIDE, Ignored

LARGEST_RECORD = 2**28
"""Bytes of prepare.json."""
SUFFIXES = (".obj", ".ply", ".stl", ".glb", ".gltf", ".off", ".npy", ".npz", ".xyz", ".pts")


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
) -> dict[str, Any]:
    """Sample the shapes below `source` and write them to `out` as `<class>/<split>/<name>-<hash>.npy`.

    Folders of the first level are classes; files at the top are of the class "shape". Each shape becomes
    (N, 3) float32 points, centred on their bounding box, whose diagonal is 1; N is `num_points`, or less
    where a cloud has less. Folders named train, val or test, at the top or in each class as in ModelNet, are the
    splits (`layout.arrange`); otherwise `split` gives the parts of each, taken by a hash of the relative
    path (`layout.draw`). What is in `out` already is kept, so that an interrupted run goes on; files with the
    same content count once.

    A file that is unreadable, crashes its process or takes more than `timeout` seconds is left out and named
    in the report, which is returned and written to `prepare.json`. ValueError where nothing can be read,
    where `out` cannot be written, lies in `source` or was prepared in another way.
    """
    began = time.monotonic()
    if num_points < 1 or len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6:
        raise ValueError(
            f"num_points must be positive and split sum to 1, got {num_points} and {tuple(split)}"
        )
    source, out = source.resolve(), out.resolve()
    ignored = Ignored()
    files = _find(source, out, ignored)
    setting = {"source": printable(source), "num_points": num_points, "split": list(split), "seed": seed}
    _claim(out, setting)
    unique, duplicates = _unique(files)
    places, origin = _places(unique, source, split, seed, ignored)
    jobs = [_job(path, source, out, num_points, place, seed) for path, place in places.items()]
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
        "duplicates": {
            printable(_name(path, source)): printable(_name(first, source))
            for path, first in duplicates.items()
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
        if path.suffix.lower() in SUFFIXES:
            files.append(path)
        else:
            ignored.add(KIND, path.name)
    if not files:
        raise ValueError(
            f"source must hold shapes ({' '.join(SUFFIXES)}), got none in {source}"
            + "".join(f"; {line}" for line in ignored.lines())
        )
    return sorted(files, key=lambda p: _name(p, source))


def _name(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()


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
    if other := [f"{key} {there.get(key)}" for key in setting if there.get(key) != setting[key]]:
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


def _job(path: Path, source: Path, out: Path, num_points: int, place: tuple[str, str], seed: int) -> Job:
    """Seed and target follow from the relative path, so that they outlast other files."""
    name, (category, part) = _name(path, source), place
    digest = hashlib.sha256(os.fsencode(f"{seed}:{name}")).digest()
    own_seed = int.from_bytes(digest[8:16], "big")
    stem = re.sub(r"[^\w.-]+", "_", path.stem)[:80]
    target = out / category / part / f"{stem}-{digest[:4].hex()}.npy"
    return Job(path, target, printable(name), printable(category), part, num_points, own_seed)


def _clear_elsewhere(job: Job) -> None:
    """A shape is in one split: what an earlier run wrote into another one, when the set was smaller, goes."""
    for split in set(SPLITS) - {job.split}:
        (job.target.parents[1] / split / job.target.name).unlink(missing_ok=True)


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


def _sample(job: Job) -> None:
    points = read_surface(job.source, job.num_points, job.seed)
    low, high = points.min(0), points.max(0)
    diagonal = float(np.linalg.norm(high - low))
    if not 0 < diagonal < np.inf:
        raise ValueError(f"points must have an extent, got a bounding-box diagonal of {diagonal}")
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_npy(job.target, ((points - (low + high) / 2) / diagonal).astype(np.float32))
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
    lines += [f"splits: {report['splits']}", *(f"ignored: {line}" for line in report["ignored"])]
    lines += [f"unreadable: {name}: {reason}" for name, reason in list(unreadable.items())[:5]]
    lines.append(
        f"{report['written']} shapes written to {out} in {report['seconds']} s, {report['kept']} kept, "
        f"{len(report['duplicates'])} duplicate and {len(unreadable)} unreadable files left out "
        "(listed in prepare.json)"
    )
    return "\n".join(map(printable, lines))
