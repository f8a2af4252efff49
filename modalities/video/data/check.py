"""Decodes every video of a folder once and writes a manifest of the results, to use or to repair the data by."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import av
import av.logging
from tqdm import tqdm

from ditmoe.checkpoint import replacing
from ditmoe.outside import open_regular, parse_json, printable, read_regular, tell
from modalities.shared.isolation import num_cores, run_isolated
from modalities.shared.understood import Ignored
from modalities.video.data.catalogue import find_videos
from modalities.video.io.container import REASONS, Unreadable
from modalities.video.io.frame_folders import ARRAYS, list_pictures
from modalities.video.io.index import Index, index_decoded
from modalities.video.io.reader import read_clip, read_index, salvaged_index

MANIFEST = "manifest.jsonl"
SECONDS, SECONDS_PER_MB = 60.0, 10.0
"""Time limit of a file: ten times what a slow core needs for a long low-bitrate film."""
MEMORY = 8 * 2**30
"""Memory limit of a decoder, in bytes."""
LARGEST_MANIFEST = 2**31
_TYPES: dict[str, tuple[type, ...]] = {
    "path": (str,), "frames": (int,), "rate": (int, float, type(None)), "height": (int,), "width": (int,),
    "codec": (str,), "bytes": (int,), "modified": (int,), "sha256": (str,), "reason": (str,), "log": (str,),
}  # fmt: skip
"""What a line of the manifest consists of."""
_EVERY = 10.0  # seconds between two writes of the manifest

HARMLESS = ("co located POCs unavailable", "mmco: unref short failure")
"""Messages that FFmpeg logs as errors for intact files."""

Entry = dict[str, Any]
Job = tuple[str, Path]


def check(source: Path, out: Path, workers: int | None = None) -> dict[str, Any]:
    """Decode the videos below `source` and write `out/manifest.jsonl`, one line per video, sorted by path.

    A line has path, frames (decoded), rate, height, width, codec, bytes, modified (ns), sha256, FFmpeg's first error
    (log) and reason, which is "" for an intact video: no error, no concealed frame. Files whose size and time, or else
    content, match an earlier manifest are not decoded again, so that an interrupted run resumes. Decoders run in
    separate processes: a video that hangs one (beyond `SECONDS`) or kills it has the reason "timeout" or "crash".

    Args:
        source: folder of videos and of folders of frames.
        out: folder of the manifest, created if needed.
        workers: decoding processes; all cores by default. 0 decodes in this process, without protection.

    Returns:
        counts of videos, of those kept from an earlier manifest and removed since, of frames, of videos by reason, and
        the time in seconds.

    Raises:
        ValueError: if there are no videos, or `out` is not writable or has a different manifest.
    """
    began = time.monotonic()
    if not source.is_dir():
        raise ValueError(
            f"source must be a folder, got {source}, which is {'a file' if source.exists() else 'not there'}"
        )
    ignored = Ignored()
    paths = find_videos(source, ignored)
    if not paths:
        raise ValueError(f"source must hold videos or folders of frames, got none in {source}")
    before = _earlier(out / MANIFEST)
    entries = {printable(path.relative_to(source).as_posix()): path for path in paths}
    alike: dict[tuple[str, str], list[Entry]] = {}
    for name, entry in before.items():
        alike.setdefault((str(entry.get("bytes")), PurePosixPath(name).suffix.lower()), []).append(entry)
    known = {name: _known(before.get(name), path, alike) for name, path in entries.items()}
    done = {name: entry for name, entry in known.items() if entry is not None}
    kept = len(done)
    todo = [(name, path) for name, path in entries.items() if name not in done]
    _write(out / MANIFEST, done)
    _examine_all(todo, done, out / MANIFEST, workers)
    report = {
        "videos": len(done),
        "kept": kept,
        "removed": _removed(before, done),
        "frames": sum(entry["frames"] for entry in done.values()),
        "reasons": dict(Counter(entry["reason"] for entry in done.values() if entry["reason"]).most_common()),
        "ignored": ignored.lines(),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(_summary(report, done, out / MANIFEST))
    return report


def examine(path: Path) -> Entry:
    """Decode one video completely: its properties, and what is wrong with it, if anything."""
    reason, index = "", None
    with _errors_of_ffmpeg() as errors:
        try:
            index = _decoded(path)
        except Unreadable as fault:
            reason = fault.reason
            with suppress(Unreadable):
                index = salvaged_index(path, fault)
    if errors and not reason:  # every frame came, some of them concealed
        reason = "damaged"
    return _entry(index, path, reason, errors[0] if errors else "")


@contextmanager
def _errors_of_ffmpeg() -> Iterator[list[str]]:
    """Collect FFmpeg's logged errors while this is open: otherwise it conceals much damage."""
    errors: list[str] = []
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # repeats would be reported later, for another file
    try:
        with av.logging.Capture() as logs:
            yield errors
            told = [message.strip() for level, _, message in logs if level <= av.logging.ERROR]
            errors += [printable(line)[:160] for line in told if line and not line.startswith(HARMLESS)]
    finally:
        av.logging.set_level(before[0])
        av.logging.set_skip_repeated(before[1])


def _entry(index: Index | None, path: Path, reason: str, log: str = "") -> Entry:
    return {
        "frames": len(index) if index else 0,
        "rate": index.rate if index else None,
        "height": index.height if index else 0,
        "width": index.width if index else 0,
        "codec": index.codec if index else "",
        "sha256": _digest(path),
        "reason": reason,
        "log": log,
    }


def _decoded(path: Path) -> Index:
    """Decode every frame of a video and return its index."""
    index = read_index(path)
    if path.is_dir():
        for number in range(len(index)):  # one at a time, to bound memory
            if read_clip(path, number, 1, index=index).shape[1:3] != (index.height, index.width):
                raise Unreadable(path, "damaged", "pictures differ in size")
        return index
    return index if path.suffix.lower() in ARRAYS else index_decoded(path)


def _examine_all(todo: list[Job], done: dict[str, Entry], manifest: Path, workers: int | None) -> None:
    """Examine each video; results are written regularly, and at the end even if interrupted."""
    ended: Iterable[tuple[Job, Any]] = (
        ((job, _examined(job)) for job in todo)
        if workers == 0
        else run_isolated(_examined, todo, workers or num_cores(), _seconds, MEMORY)
    )
    saved, total = time.monotonic(), len(done) + len(todo)
    try:
        for job, found in tqdm(ended, "check", total, unit="video", initial=len(done), disable=not todo):
            done[job[0]] = found if isinstance(found, dict) else _failed(job[1], found)
            if time.monotonic() - saved > _EVERY:
                _write(manifest, done)
                saved = time.monotonic()
    finally:
        _write(manifest, done)


def _examined(job: Job) -> Entry:
    return _stamp(job[1]) | examine(job[1])


def _seconds(job: Job) -> float:
    return SECONDS + SECONDS_PER_MB * _stamp(job[1])["bytes"] / 1e6


def _failed(path: Path, error: Exception) -> Entry:
    """The entry of a video that killed its decoder."""
    tell(f"{path}: {error}")
    return _stamp(path) | _entry(None, path, "timeout" if isinstance(error, TimeoutError) else "crash")


def _stamp(path: Path) -> Entry:
    """Size and time of last change of a video's files."""
    stats = [file.lstat() if not file.exists() else file.stat() for file in _files(path)]
    return {
        "bytes": sum(stat.st_size for stat in stats),
        "modified": max((s.st_mtime_ns for s in stats), default=0),
    }


def _known(entry: Entry | None, path: Path, alike: dict[tuple[str, str], list[Entry]]) -> Entry | None:
    """The line of an earlier manifest for this video, by its state or else by its content, under any name.

    Args:
        entry: the line with the same name.
        alike: (size, suffix) -> lines.
    """
    if _same(entry, path):
        return entry
    with suppress(OSError, Unreadable):
        stamp = _stamp(path)
        # a timeout or a crash may have been transient
        lines = [
            line
            for line in alike.get((str(stamp["bytes"]), path.suffix.lower()), ())
            if line.get("reason") not in ("timeout", "crash")
        ]
        if lines and (digest := _digest(path)):
            return next((line | stamp for line in lines if line.get("sha256") == digest), None)
    return None


def _removed(before: dict[str, Entry], now: dict[str, Entry]) -> int:
    """Number of videos that no longer exist under any name."""
    contents = {entry.get("sha256") for entry in now.values()}  # None for one that killed its decoder
    return sum(name not in now and str(entry.get("sha256")) not in contents for name, entry in before.items())


def _same(entry: Entry | None, path: Path) -> bool:
    with suppress(OSError, Unreadable):
        return entry is not None and all(entry.get(key) == value for key, value in _stamp(path).items())
    return False


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's images and their names; "" if it cannot be opened."""
    try:
        if not path.is_dir():
            with open_regular(path) as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        lines = "".join(f"{file.name} {_digest(file)}\n" for file in _files(path))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
    except (OSError, ValueError):
        return ""


def _files(path: Path) -> list[Path]:
    return list_pictures(path) if path.is_dir() else [path]


def _earlier(manifest: Path) -> dict[str, Entry]:
    """Path -> line of an existing manifest."""
    if not manifest.exists():
        return {}
    try:
        lines = [_line(parse_json(line)) for line in read_regular(manifest, LARGEST_MANIFEST).splitlines()]
        return {line.pop("path"): line for line in lines}
    except (OSError, ValueError) as error:
        raise ValueError(f"{manifest} must be the manifest of an earlier run, got something else") from error


def _line(said: Any) -> Entry:
    """A line of a manifest, which may be someone else's; ValueError unless `_write` could have written it."""
    if not isinstance(said, dict) or said.keys() != _TYPES.keys():
        raise ValueError("a line must be of a video")
    if any(type(said[name]) not in kinds for name, kinds in _TYPES.items()):
        raise ValueError("a line must be of texts and numbers")
    if said["reason"] not in ("", "timeout", "crash", *REASONS):
        raise ValueError("a reason must be one of those that are known")
    return said


def _write(manifest: Path, entries: dict[str, Entry]) -> None:
    try:
        with replacing(manifest) as stream:
            for name, entry in sorted(entries.items()):
                stream.write(json.dumps({"path": name, **entry}).encode() + b"\n")
    except OSError as error:
        raise ValueError(
            f"out must be a folder that can be written, got {manifest.parent}: {error.strerror}"
        ) from error


def _summary(report: dict[str, Any], entries: dict[str, Entry], manifest: Path) -> str:
    lines = [f"ignored: {line}" for line in report["ignored"]]
    lines += [f"{reason:16}{count:8}" for reason, count in report["reasons"].items()]
    broken = [(name, entry) for name, entry in sorted(entries.items()) if entry["reason"]]
    lines += [f"{entry['reason']}: {name} ({entry['frames']} frames decode)" for name, entry in broken[:5]]
    lines.append(
        f"{report['videos']} videos, {report['frames']} frames, {len(broken)} videos not whole, "
        f"kept {report['kept']}, made {report['videos'] - report['kept']}, removed {report['removed']} in "
        f"{report['seconds']} s: {manifest}"
    )
    return "\n".join(map(printable, lines))
