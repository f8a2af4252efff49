"""How good a set of generated clips is: Fréchet and kernel distance in features of video, motion and flicker."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ditmoe.modality import Report, Samples
from modalities import frechet
from modalities.frechet import Estimate
from modalities.video.features import Clips, Extractor, extract, make
from modalities.video.i3d import LEAST_FRAMES

ClipSet = Samples | np.ndarray
STARTS = ("random", "first")


def evaluate_videos(
    generated: ClipSet,
    reference: ClipSet,
    train: ClipSet | None = None,
    *,
    features: str = "i3d",
    protocol: str = "whole",
    weights: str | Path | None = None,
    frames: int = 16,
    stride: int = 1,
    start: str = "random",
    num: int | None = None,
    groups: int = 10,
    seed: int = 0,
    batch: int = 4,
    cache: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Report:
    """Measure generated clips against real ones.

        from modalities.video.metric import evaluate_videos
        report = evaluate_videos(clips, real)          # uint8 (S, T, H, W, 3) each, with I3D's weights installed
        report.values["fvd/whole"], report.rows["floor"]["fvd/whole"]

    Values: fvd/<protocol> and kvd/<protocol> with I3D, else under the features' own name (fd/, mmd/); flicker, the mean
    absolute change from frame to frame of 0 to 255, and motion, the share of pixels that change by more than 16.

    Rows: "floor", one random half of the reference against the other, what a perfect model has with so few clips;
    "oracle", as many training clips as there are generated ones, in their place; for flicker and motion "held-out",
    what the reference itself has. Intervals are of 95 %, by jackknife, from blocks (kernel), or over the clips.

    Args:
        generated, reference, train: `Samples` or arrays, uint8 RGB (S, T, H, W, 3).
        features, protocol, weights, device: see `features.make`.
        frames, stride, start: each side is measured by one clip of each video: `frames` frames, `stride` apart, from a
            random place (by seed) or the first frame; ValueError if the videos are too short for that.
        num: at most so many videos of each side, drawn by seed; None is all. Never repeated.
        groups: of the jackknife; 0 leaves out intervals and bias.
        cache: folder for features of real clips, named by content.

    Raises:
        ValueError: one line, for clips of another kind, fewer than two of them, or an option that makes no sense.
    """
    if num is not None and num < 2:
        raise ValueError(f"num must be at least 2, or null for all, got {num}")
    if min(frames, stride) < 1 or start not in STARTS:
        raise ValueError(
            f"frames and stride must be at least 1, start {' or '.join(STARTS)}, got {frames}, {stride}, {start}"
        )
    if features == "i3d" and frames < LEAST_FRAMES:
        raise ValueError(f"frames must be at least {LEAST_FRAMES} for I3D, got {frames}")
    extractor = make(features, protocol, weights, device)
    given = {"generated": generated, "reference": reference} | ({} if train is None else {"train": train})
    sets, left = {}, {}
    for role, data in given.items():
        sets[role], left[role] = _cut(checked(data, role), role, frames, stride, start, num, seed)
    if train is not None:
        rows = np.random.default_rng(seed).permutation(len(sets["train"]))[: len(sets["generated"])]
        sets["oracle"] = sets.pop("train")[np.sort(rows)]
    folder = None if cache is None else Path(cache)
    found = {
        role: extract(extractor, clips, None if role == "generated" else folder, batch, progress)
        for role, clips in sets.items()
    }
    estimates = _distances(found["generated"], found["reference"], extractor, groups, seed)
    moves = {role: _movement(clips) for role, clips in sets.items()}
    values = {n: e.value for n, e in estimates.items()} | {
        n: float(v.mean()) for n, v in moves["generated"].items()
    }
    intervals = {
        n: e.interval(-np.inf if n == extractor.kernel else 0.0)
        for n, e in estimates.items()
        if np.isfinite(e.error)
    }
    intervals |= {n: _of_mean(v) for n, v in moves["generated"].items()}
    report = Report(
        values,
        _protocol(sets, left, extractor, frames, stride, start, seed),
        intervals,
        _rows(found, moves, extractor, seed),
    )
    return Report(
        report.values,
        report.protocol,
        report.intervals,
        report.rows,
        _notes(report, sets, left, estimates, found),
    )


def checked(data: ClipSet, role: str) -> Clips:
    """The clips of a set.

    Raises:
        ValueError: unless they are uint8 RGB clips, two or more.
    """
    clips = data.data if isinstance(data, Samples) else data
    if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != np.uint8 or 0 in clips.shape[1:]:
        raise ValueError(
            f"{role} must be uint8 RGB (S, T, H, W, 3), got {clips.dtype} of shape {clips.shape}"
        )
    if len(clips) < 2:
        raise ValueError(f"{role} must hold at least 2 clips, got {len(clips)}")
    return clips


def _cut(
    videos: Clips, role: str, frames: int, stride: int, start: str, num: int | None, seed: int
) -> tuple[UInt8[np.ndarray, "_ F h w 3"], int]:
    """A clip of each video, start + stride * (0, 1, ..., frames - 1); how many videos more there were than `num`."""
    room = videos.shape[1] - (frames - 1) * stride
    if room < 1:
        raise ValueError(
            f"{role} must have at least {(frames - 1) * stride + 1} frames for frames={frames} stride={stride}, got "
            f"{videos.shape[1]}"
        )
    rng = np.random.default_rng([seed, len(videos)])
    chosen = np.sort(rng.permutation(len(videos))[:num])
    starts = rng.integers(room, size=len(videos)) if start == "random" else np.zeros(len(videos), int)
    places = starts[chosen, None] + stride * np.arange(frames)
    return videos[chosen[:, None], places], len(videos) - (len(videos) if num is None else num)


def _distances(
    a: np.ndarray, b: np.ndarray, extractor: Extractor, groups: int, seed: int
) -> dict[str, Estimate]:
    return {
        extractor.distance: frechet.jackknife(a, b, groups, seed),
        extractor.kernel: frechet.kid(a, b, seed=seed),
    }


def _movement(clips: Clips) -> dict[str, np.ndarray]:
    """Of each clip; 0 where there is one frame."""
    change = np.zeros((2, len(clips)))
    for i, clip in enumerate(clips):
        if len(clip) > 1:
            steps = np.abs(np.diff(clip.astype(np.int16), axis=0))
            change[:, i] = steps.mean(), (steps.max(axis=-1) > 16).mean()
    return {"flicker": change[0], "motion": change[1]}


def _of_mean(values: np.ndarray) -> tuple[float, float]:
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    return max(0.0, float(values.mean()) - half), float(values.mean()) + half


def _rows(
    found: Mapping[str, np.ndarray],
    moves: Mapping[str, Mapping[str, np.ndarray]],
    extractor: Extractor,
    seed: int,
) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    real = found["reference"]
    if len(real) >= 4:
        one, other = (real[half] for half in frechet.halves(len(real), seed))
        rows["floor"] = {n: e.value for n, e in _distances(one, other, extractor, 0, seed).items()}
    if "oracle" in found:
        rows["oracle"] = {
            n: e.value for n, e in _distances(found["oracle"], real, extractor, 0, seed).items()
        }
        rows["oracle"] |= {n: float(v.mean()) for n, v in moves["oracle"].items()}
    return rows | {"held-out": {n: float(v.mean()) for n, v in moves["reference"].items()}}


def _protocol(
    sets: Mapping[str, Clips],
    left: Mapping[str, int],
    extractor: Extractor,
    frames: int,
    stride: int,
    start: str,
    seed: int,
) -> dict[str, Any]:
    out: dict[str, Any] = dict(extractor.identity)
    out |= {role: f"{len(of)} clips of {of.shape[2]} x {of.shape[3]}" for role, of in sets.items()}
    out |= {f"{role} left out": f"{number} by num" for role, number in left.items() if number > 0}
    out |= {f"{role} missing": f"{-number} of num" for role, number in left.items() if number < 0}
    out |= {"clips": f"{frames} frames, every {stride}, {start} start, of both sides alike", "seed": seed}
    return out | {"covariance": "divided by S - 1, float64", "colours": "0 to 255 as -1 to 1"}


def _notes(
    report: Report,
    sets: Mapping[str, Clips],
    left: Mapping[str, int],
    estimates: Mapping[str, Estimate],
    found: Mapping[str, np.ndarray],
) -> list[str]:
    notes = []
    name = next(iter(estimates))
    value, bias, width = report.values[name], estimates[name].bias, found["generated"].shape[1]
    seen = {clip.tobytes() for clip in sets["reference"]}
    copies = sum(clip.tobytes() in seen for clip in sets["generated"])
    if copies:
        notes.append(
            f"{copies} of {len(sets['generated'])} generated clips are exact copies of reference clips"
        )
    few = {role: len(of) for role, of in sets.items() if role != "oracle" and len(of) <= width}
    if few:
        counts = " and ".join(f"{count} {role}" for role, count in few.items())
        notes.append(
            f"{counts} clips are no more than the {width} features: {name} is far too high, by an amount that depends "
            "on the counts; compare it with equal counts, and with the floor"
        )
    elif bias > 0.05 * value:
        notes.append(f"about {bias:.3g} of {name} {value:.3g} is bias of the small sets (jackknife)")
    if name.startswith("fvd") and len(sets["generated"]) != 2048:
        notes.append(f"published tables take 2,048 clips, not {len(sets['generated'])}")
    notes += [
        f"{role} has {-number} clips fewer than num asks for; none is taken twice"
        for role, number in left.items()
        if number < 0
    ]
    if name == "fd/pixels":
        notes.append(
            "fd/pixels compares colours, layout and change, no texture and no meaning: never with FVD"
        )
    sizes = {role: f"{of.shape[2]} x {of.shape[3]}" for role, of in sets.items() if role != "oracle"}
    if len(set(sizes.values())) > 1:
        notes.append(f"sizes differ ({sizes}): sharpness alone tells the sets apart")
    return notes
