"""Evaluation of generated clips: Fréchet and kernel distances of video features, motion, flicker, novelty."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ditmoe.modality import Report
from modalities.shared import frechet
from modalities.shared.confidence import Estimate, wilson
from modalities.video.metrics import clip_sets, memorisation, movement, warnings
from modalities.video.metrics import protocol as protocols
from modalities.video.metrics.clip_sets import ClipSet, Frames, Side
from modalities.video.metrics.features import Extractor, extract, make
from modalities.video.metrics.i3d import LEAST_FRAMES
from modalities.video.metrics.reconstruction import reconstruction

MOVEMENT = ("flicker", "motion")


def evaluate_videos(
    generated: ClipSet,
    reference: ClipSet,
    train: ClipSet | None = None,
    *,
    reconstruct: Callable[[Frames], Frames] | None = None,
    features: str = "i3d",
    preset: str | None = None,
    protocol: str = "whole",
    weights: str | PathLike | None = None,
    frames: int = 16,
    stride: int = 1,
    start: str = "random",
    num: int | None = None,
    groups: int = 10,
    seams: Sequence[int] | None = None,
    digits: int | None = None,
    seed: int = 0,
    batch: int = 4,
    cache: str | PathLike | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Report:
    """Measure generated clips against real ones.

        from modalities.video import evaluate_videos
        report = evaluate_videos(clips, real)          # uint8 (S, T, H, W, 3) each, with I3D's weights installed
        report.values["fvd/whole"], report.rows["floor"]["fvd/whole"]

    Values: fvd/<protocol> and kvd/<protocol> with I3D, else under the features' own name (fd/, mmd/); flicker, the mean
    absolute change between frames on 0 to 255; motion, the fraction of pixels that change by more than 16; with `train`
    nearest-train and novelty (see `memorisation`). As ratios to the reference, 1 for real clips: flicker/real,
    motion/real, jerk/real and warp/real (see `motion`), and with `seams` seam/real and seam-jerk/real, the change and
    the jerk there. With `digits` the fractions in which their laws are obeyed, law/two to law/exchanged (`digit_laws`).

    Rows: "floor", one random half of the reference against the other, as a perfect model would score with so few clips;
    "oracle", as many training clips in place of the generated ones; "autoencoder", the reference's reconstruction in
    their place, a bound that no model with that autoencoder can beat by much, with its PSNR and SSIM; "held-out", the
    values of the reference itself. Intervals are 95 %, by jackknife, from blocks (kernel), over the clips, or Wilson's
    (novelty, laws).

    Args:
        generated, reference, train: `Samples`, arrays uint8 RGB (S, T, H, W, 3), or lists of videos (T, H, W, 3) of
            any lengths and sizes.
        reconstruct: passes a video through an autoencoder and back.
        features, weights, device: see `features.make`.
        preset: styleganv, cdfvd or common: resizing, starts, choice of videos and covariance as there (`protocol`).
        protocol, start, num: without a preset: how frames are resized (whole, cropped); whether the one clip of each
            video starts at a random frame (by seed) or at the first; and the most videos per side, chosen by seed
            without replacement.
        frames, stride: of the clips, on both sides.
        seams: indices of the frames of generated videos before which given and new ones meet; 0 is a loop's.
        digits: size in pixels of the built-in moving digits, if the clips show them.
        groups: groups of the jackknife; 0 omits intervals and bias.
        cache: folder for features of real clips, named by content.

    Raises:
        ValueError: with one line, for clips of another type or fewer than two, or an invalid option.
    """
    chosen, extractor = choose(features, preset, protocol, weights, frames, stride, start, num, device)
    clip_sets.checked(reference, "reference")  # before the generated clips, of which a run makes as many
    given = {"generated": generated, "reference": reference} | ({} if train is None else {"train": train})
    sets = {role: clip_sets.take(data, role, chosen, seed, progress) for role, data in given.items()}
    others, why_not = _others(sets, reconstruct, seed)
    folder = None if cache is None else Path(cache)
    found = {"generated": extract(extractor, sets["generated"], None, batch, progress)}
    width = found["generated"].shape[1]
    for role, side in {"reference": sets["reference"], **others}.items():
        found[role] = extract(extractor, side, folder, batch, progress, width)
    distances = partial(_distances, extractor=extractor, ddof=chosen.ddof, seed=seed)
    estimates = distances(found["generated"], found["reference"], groups=groups)
    ways = _ways(sets)
    rows = _rows(found, sets, others, distances, seed)
    rows["held-out"] |= memorisation.values(ways, "reference")
    values = _plain(estimates) | _movement(sets["generated"]) | memorisation.values(ways, "generated")
    moves = movement.measured(sets["generated"], sets["reference"], seams, digits, chosen.stride)
    if digits is not None:
        for row, side in {"held-out": sets["reference"], **others}.items():
            rows[row] |= movement.laws(side, digits, chosen.stride).values
    report = Report(
        values | moves.values,
        warnings.protocol(sets, chosen, extractor.identity, rows, seed, seams, digits),
        _intervals(estimates, extractor, sets["generated"], len(sets["reference"]), values) | moves.intervals,
        rows,
    )
    told = warnings.warnings(report, sets, estimates[extractor.distance].bias, width, ways)
    return replace(report, notes=[*told, *why_not])


def choose(
    features: str = "i3d",
    preset: str | None = None,
    protocol: str = "whole",
    weights: str | PathLike | None = None,
    frames: int = 16,
    stride: int = 1,
    start: str = "random",
    num: int | None = None,
    device: str | None = None,
    **others: Any,
) -> tuple[protocols.Protocol, Extractor]:
    """The protocol and the feature extractor for the options of `evaluate_videos`.

    Raises:
        ValueError: for invalid options or missing weights.
    """
    chosen = protocols.make(preset, protocol, frames, stride, start, num)
    if features == "i3d" and frames < LEAST_FRAMES:
        raise ValueError(f"frames must be at least {LEAST_FRAMES} for I3D, got {frames}")
    if preset and features != "i3d":
        raise ValueError(f"preset {preset} is a way to take FVD: it needs features=i3d, got {features}")
    return chosen, make(features, chosen.resize, weights, device, chosen.name)


def _others(
    sets: Mapping[str, Side], reconstruct: Callable[[Frames], Frames] | None, seed: int
) -> tuple[dict[str, Side], list[str]]:
    """Sets that replace the generated clips for comparison, and a sentence on those that could not be made."""
    others: dict[str, Side] = {}
    if "train" in sets:
        rows = np.random.default_rng(seed).permutation(len(sets["train"]))[: len(sets["generated"])]
        others["oracle"] = sets["train"].take(np.sort(rows))
    if reconstruct is None:
        return others, []
    try:
        others["autoencoder"] = sets["reference"].changed(reconstruct)
    except ValueError as error:  # a length or size that the autoencoder does not support
        return others, [f"there is no row of the autoencoder: {error}"]
    return others, []


def _distances(
    a: np.ndarray, b: np.ndarray, extractor: Extractor, ddof: int, seed: int, groups: int = 0
) -> dict[str, Estimate]:
    return {
        extractor.distance: frechet.jackknife(a, b, groups, seed, ddof),
        extractor.kernel: frechet.kid(a, b, seed=seed),
    }


def _plain(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    return {name: estimate.value for name, estimate in estimates.items()}


def _movement(side: Side) -> dict[str, float]:
    return {name: float(side.of(name).mean()) for name in MOVEMENT}


def _ways(sets: Mapping[str, Side]) -> dict[str, np.ndarray]:
    """Distance of each generated and reference clip to the nearest training clip, if there are any."""
    if "train" not in sets:
        return {}
    small = {role: [clip.small for clip in side.clips] for role, side in sets.items()}
    return {role: memorisation.nearest(small[role], small["train"]) for role in ("generated", "reference")}


def _intervals(
    estimates: Mapping[str, Estimate],
    extractor: Extractor,
    generated: Side,
    held_out: int,
    values: Mapping[str, float],
) -> dict[str, tuple[float, float]]:
    out = {
        name: estimate.interval(-np.inf if name == extractor.kernel else 0.0)
        for name, estimate in estimates.items()
        if np.isfinite(estimate.error)
    }
    for name in MOVEMENT:
        each = generated.of(name)
        mean, half = float(each.mean()), 1.96 * float(each.std(ddof=1)) / len(each) ** 0.5
        out[name] = max(0.0, mean - half), mean + half
    if "novelty" in values:
        both = 1 / (1 / len(generated) + 1 / held_out)  # the threshold is as uncertain as the fraction
        out["novelty"] = wilson(values["novelty"], max(1, int(both)))
    return out


def _rows(
    found: Mapping[str, np.ndarray],
    sets: Mapping[str, Side],
    others: Mapping[str, Side],
    distances: Callable[[np.ndarray, np.ndarray], dict[str, Estimate]],
    seed: int,
) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    real = found["reference"]
    if len(real) >= 4:
        one, other = (real[half] for half in frechet.halves(len(real), seed))
        rows["floor"] = _plain(distances(one, other)) | movement.floor(sets["reference"], seed)
    for role, side in others.items():
        rows[role] = _plain(distances(found[role], real)) | _movement(side)
        rows[role] |= movement.ratios(side, sets["reference"]).values
    if "autoencoder" in others:
        rows["autoencoder"] |= reconstruction(sets["reference"], others["autoencoder"])
    return rows | {"held-out": _movement(sets["reference"])}
