"""Prepares a data set from the user's own shapes: a folder of meshes or clouds in, the layout of PC15k out."""

import sys
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ditmoe.outside import (
    check_number,
    files_below,
    load_array,
    parse_json,
    printable,
    read_regular,
    real_path,
    tell,
)
from modalities.pointcloud.data.axes import check_up
from modalities.pointcloud.data.channels import XYZ, Channels
from modalities.pointcloud.data.formats import SET_SUFFIXES, may_be_shape, without_surfaces
from modalities.pointcloud.data.gltf import files_beside
from modalities.pointcloud.data.labelled_sets import NAMES as CLASS_NAMES
from modalities.pointcloud.data.pieces import LARGEST_RECORD, REPORT, Pieces, write_json
from modalities.pointcloud.data.prepared_captions import COUNT, check_captions, find_captions, write_captions
from modalities.pointcloud.data.shape_jobs import (
    ARRANGED,
    ONE,
    Job,
    as_told,
    items_of,
    make_job,
    name_in,
    number_of,
    places_of,
)
from modalities.pointcloud.data.shape_sampling import sample_all
from modalities.pointcloud.data.up_guess import MOST, guess_up
from modalities.shared import provenance
from modalities.shared.datasets import SPLITS
from modalities.shared.provenance import Origin, Record, Seen, see_all
from modalities.shared.understood import KIND, Ignored, Understood

FORMAT = "ditmoe-shapes-2"
SURFACE = "meshes that were made of clouds beside them"
MOST_VIEWS = 1000


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
    channels: Channels = XYZ,
    views: int = 0,
    captions: bool = False,
) -> dict[str, Any]:
    """Sample the shapes below `source` and write them to `out` as `<class>/<split>/<name>-<hash>.npy`.

    Top-level folders are classes; files at the top have the class "shape". Each shape becomes (N, 3) float32 points,
    with its bounding box centred and of diagonal 1; N is `num_points`, or less if a cloud has fewer. With more
    `channels` it becomes (N, C): colours in [0, 1], unit normals; a file that lacks one is left out as unreadable.

    Splits are given by folders named train, val or test, at the top or in each class as in ModelNet
    (`layout.arrange`), or by the names of all files or of HDF5 files, whose labels are classes (`labelled_sets`);
    otherwise `split` gives their shares, assigned by a hash of the relative path (`shared.hash_split`). The axis `up`
    of the files becomes y. A file of several clouds (S, N, 3) gives as many shapes; clouds with fewer than `min_points`
    points are left out; files with the same content count once.

    The points depend only on the content of a file and on the options, so that `out` ends up as a new folder would,
    whatever was in it: a shape with known content is reused without being read, wherever its file is now; outputs
    without a source are removed, but never files from elsewhere. An interrupted run resumes, and the old state stays
    until all is made.

    For each shape, so many `views` are also written, the points visible in a scan from one side (`partial.seen_from`),
    as `scans/<class>/<split>/<name>-<hash>-<view>.npy`, in the shape's own units. They are for evaluating completion
    (docs/given.md); training ignores them and makes its own.

    With `captions`, the captions of the files are copied (`prepared_captions`).

    A file that is unreadable, crashes its process or takes more than `timeout` seconds is left out and named in the
    report, which is written to `prepare.json`, and tried again each time. Returns the report, and the numbers of shapes
    made, kept and removed. ValueError if nothing can be read, or if `out` is not writable or inside `source`.
    """
    began = time.monotonic()
    if workers is not None:
        check_number("workers", workers, 0, whole=True)
    source, out = real_path(source), real_path(out)
    setting = _setting(source, num_points, split, seed, up, min_points, channels, views)
    ignored = Ignored()
    files = _find(source, out, ignored)
    before = _claim(out, setting)
    check_captions(out, before, captions)
    pieces = Pieces(out)
    seen = _look(files, source, pieces.record)
    unique, duplicates = _unique(files, seen)
    places, origin = places_of(unique, source, split, seed, ignored)
    jobs = [
        make_job(path, source, pieces, setting, own, seen[path].content, item, channels, views)
        for path, place in places.items()
        for item, own in items_of(path, seen[path].note, place)
    ]
    pieces.check_inside(*(target for job in jobs for target in (job.target, *job.scans)))
    missing = [job for job in jobs if any(key not in pieces for key in (job.key, *job.scans.values()))]
    unreadable, contents = sample_all(missing, len(jobs) - len(missing), workers, timeout)
    done = [job for job in jobs if job.name not in unreadable]
    if not done:
        name, reason = next(iter(unreadable.items()))
        raise ValueError(f"source must hold readable shapes, got {len(unreadable)} others: {name}: {reason}")
    report = setting | _report(done, unreadable, duplicates, pieces, source, up)
    report |= {"splits": origin, "ignored": ignored.lines()}
    told = find_captions({job.target: job.source for job in done}, source) if captions else None
    report |= {} if told is None else {COUNT: len(told)}
    sources = _with_counts(jobs, done, seen, source)
    wanted = {job.target: job.key for job in done}
    for job in done:
        wanted |= job.scans
    others = pieces.arrange(wanted, contents, sources, before, report)
    write_captions(out, told, before)
    made = sum(job.name not in unreadable for job in missing)
    summary = {
        "made": made,
        "kept": len(done) - made,
        "removed": _removed(pieces.record, sources),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(_summary(report | summary, out, others))
    return report | summary


def _setting(
    source: Path,
    num_points: int,
    split: Sequence[float],
    seed: int,
    up: str,
    min_points: int,
    channels: Channels,
    views: int,
) -> dict[str, Any]:
    """The options that shapes depend on, as in the report.

    Raises:
        ValueError: for an invalid option.
    """
    if num_points < 1 or len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6:
        raise ValueError(
            f"num_points must be positive and split sum to 1, got {num_points} and {tuple(split)}"
        )
    check_up(up)
    check_number("views", views, 0, MOST_VIEWS, whole=True)
    setting = {
        "format": FORMAT,
        "source": printable(source),
        "num_points": num_points,
        "split": list(split),
        "seed": seed,
        "up": up,
        "min_points": min_points,
        "channels": list(channels.names),
        "views": views,
    }
    return setting | ({} if channels.columns is None else {"columns": list(channels.columns)})


def _look(files: list[Path], source: Path, record: Record) -> dict[Path, Seen]:
    """The current state of each file, identified by state or content; its number of shapes is tied to the content."""
    beside = {path: files_beside(path) for path in files if path.suffix.lower() in (".gltf", ".glb")}
    origins = [Origin((path, *beside.get(path, ()))) for path in files]
    found = see_all(origins, [record.sources.get(name_in(path, source)) for path in files])
    counts = {was.content: was.note for was in record.sources.values()}
    return {
        path: replace(now, note=now.note or counts.get(now.content, ""))
        for path, now in zip(files, found, strict=True)
    }


def _with_counts(jobs: list[Job], done: list[Job], seen: dict[Path, Seen], source: Path) -> dict[str, Seen]:
    """The sources for the record, with the number of readable shapes of each."""
    notes = {job.source: ONE for job in done}
    notes |= {
        path: str(num) for path, num in Counter(job.source for job in jobs if job.item is not None).items()
    }
    return {name_in(path, source): replace(of, note=notes.get(path, "")) for path, of in seen.items()}


def _removed(before: Record, sources: dict[str, Seen]) -> int:
    """Number of shapes whose sources no longer exist under any name; edited ones are made again."""
    return sum(number_of(of.note) for of in provenance.gone(before.sources, sources))


def _find(source: Path, out: Path, ignored: Ignored) -> list[Path]:
    """The files to read, sorted by relative path."""
    if not source.is_dir():
        state = "is a file" if source.exists() else "is not there"
        raise ValueError(f"source must be a folder, got {source}, which {state}")
    if out.is_relative_to(source):
        raise ValueError(f"out must not lie in source, got {out} in {source}")
    files = []
    found = list(files_below(source, hidden=True, special=True, skip=ignored.is_hidden))
    own = set(without_surfaces(found))
    for path in found:
        if path.name == CLASS_NAMES:
            continue
        if path not in own:
            ignored.add(SURFACE, path.name)
        elif may_be_shape(path):
            files.append(path)
        else:
            ignored.add(KIND, path.name)
    if not files:
        raise ValueError(
            f"source must hold shapes ({' '.join(SET_SUFFIXES)}), got none in {source}"
            + "".join(f"; {line}" for line in ignored.lines())
        )
    return sorted(files, key=lambda p: name_in(p, source))


def _claim(out: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """The existing report in `out`, else the setting, which is written there; tells if the settings have changed."""
    record = out / REPORT
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            write_json(record, setting)
        text = read_regular(record, LARGEST_RECORD)
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {out}: {error.strerror}") from error
    try:
        there = dict(parse_json(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{record} must be the report of an earlier run, got something else") from error
    if there.get("format") != FORMAT or ("counts" in there and not (out / provenance.RECORD).is_file()):
        raise ValueError(
            f"out must be new or prepared by this version: {out} lacks format = {FORMAT} in {REPORT}, or "
            f"{provenance.RECORD}"
        )
    other = [f"{key} {there.get(key)}" for key in setting if there.get(key) != setting[key]]
    if again := [words for words in other if words.partition(" ")[0] not in ARRANGED]:
        tell(f"{out} was prepared with {', '.join(again)}: all of it is made again", sys.stdout)
    elif other:
        tell(f"{out} was prepared with {', '.join(other)}: shapes that are known are kept", sys.stdout)
    return there


def _unique(files: list[Path], seen: Mapping[Path, Seen]) -> tuple[list[Path], dict[Path, Path]]:
    """Files with distinct content in order, and duplicate -> first."""
    first: dict[Hashable, Path] = {}
    duplicates: dict[Path, Path] = {}
    for path in files:
        # A file that cannot be opened is kept, to be reported with the other unreadable ones.
        if first.setdefault(seen[path].content or path, path) is not path:
            duplicates[path] = first[seen[path].content]
    return [path for path in files if path not in duplicates], duplicates


def _report(
    done: list[Job],
    unreadable: Mapping[str, str],
    duplicates: Mapping[Path, Path],
    pieces: Pieces,
    source: Path,
    up: str,
) -> dict[str, Any]:
    """The report on all files."""
    same = {
        as_told(name_in(path, source)): as_told(name_in(first, source)) for path, first in duplicates.items()
    }
    return {
        "counts": _counts(done),
        "unreadable": unreadable,
        "notes": _notes(done, pieces),
        "duplicates": same,
        **_looks([pieces.path(job.key) for job in done], up),
    }


def _counts(jobs: list[Job]) -> dict[str, dict[str, int]]:
    """Shapes of each class in each split."""
    counts = {job.category: dict.fromkeys(SPLITS, 0) for job in jobs}
    for job in jobs:
        counts[job.category][job.split] += 1
    return counts


def _notes(jobs: list[Job], pieces: Pieces) -> dict[str, str]:
    """Notes from reading the shapes, by name."""
    notes = {job.name: note for job in jobs if (note := pieces.note(job.key)) is not None}
    return dict(sorted(notes.items()))


def _looks(files: list[Path], up: str) -> dict[str, str]:
    """A guess of the up axis, if it differs from the configured one."""
    some = [load_array(file) for file in files[:: -(-len(files) // MOST) or 1]]
    axis = guess_up(some)
    if axis in (None, "y"):
        return {}
    # Map the current x, y and z back to the axes of the files.
    was = {"x": {"x": "y", "z": "z"}, "y": {"x": "x", "z": "z"}, "z": {"x": "x", "z": "y"}}[up][axis]
    return {
        "looks": f"these shapes look as if {was} of the files were up, not {up}: modality.up={was} turns them, if that "
        "is so"
    }


def _summary(report: dict[str, Any], out: Path, others: int) -> str:
    counts, unreadable = report["counts"], report["unreadable"]
    width = max(map(len, counts))
    lines = [f"{'':{width}} {' '.join(f'{split:>6}' for split in SPLITS)}"]
    for category, row in sorted(counts.items()):
        lines.append(f"{category:{width}} {' '.join(f'{row[split]:6}' for split in SPLITS)}")
    lines += [f"note: {name}: {text}" for name, text in list(report["notes"].items())[:5]]
    lines += [f"{len(report['notes'])} files with notes"] * (len(report["notes"]) > 5)
    lines += [f"note: {report['looks']}"] if "looks" in report else []
    lines += [f"splits: {report['splits']}", *(f"ignored: {line}" for line in report["ignored"])]
    rows = [row for _, row in sorted(counts.items())]
    labels = {split: [i for i, row in enumerate(rows) for _ in range(row[split])] for split in SPLITS}
    lines += [f"note: {text}" for text in Understood(out, "shape", sorted(counts), labels, "").warnings()]
    lines += [f"unreadable: {name}: {reason}" for name, reason in list(unreadable.items())[:5]]
    lines += [f"{others} files among them were not written by prepare, and are left there"] * (others > 0)
    lines.append(
        f"{report['made'] + report['kept']} shapes in {out}: kept {report['kept']}, made {report['made']}, removed "
        f"{report['removed']} in {report['seconds']} s; {len(report['duplicates'])} duplicate and {len(unreadable)} "
        f"unreadable files left out (listed in {REPORT})"
    )
    return "\n".join(map(printable, lines))
