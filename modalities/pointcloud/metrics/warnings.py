"""Warnings about point-cloud metrics that could be misread."""

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from ditmoe.modality import Report
from modalities.pointcloud.metrics.distance import Metric, is_approximate
from modalities.pointcloud.metrics.protocol import Drawn, Options


def warnings(
    report: Report, drawn: Drawn, M: Mapping[tuple[str, str, Metric], np.ndarray], options: Options
) -> list[str]:
    """Warnings for a report of these sets, the most important first."""
    sets = drawn.sets
    generated, reference = len(sets["generated"]), len(sets["reference"])
    notes = [*_about_copies(M, sets), *_about_files(drawn), *_about_protocol(drawn, options)]
    if min(generated, reference) < 30:
        error = np.sqrt(0.25 / (generated + reference))
        notes.append(
            f"{generated} generated against {reference} real shapes are few: at 0.5, 1-NNA has a standard "
            f"error of {error:.2f} or more, and COV and MMD depend on the numbers of shapes"
        )
    if generated < reference:
        notes.append(
            f"{generated} generated shapes for {reference} real ones: COV cannot exceed {generated / reference:.2f}"
        )
    if "oracle" in sets and len(sets["oracle"]) < generated:
        notes.append(
            f"the training set has only {len(sets['oracle'])} shapes: the oracle is smaller than the "
            f"{generated} generated ones, so its COV and MMD are worse than they would be"
        )
    return [*notes, *_about_values(report), *_about_range(sets)]


def _about_values(report: Report) -> list[str]:
    notes = []
    for kind in get_args(Metric):
        value = report.values.get(f"1-nna/{kind}", 1.0)
        if value < 0.5:
            notes.append(
                f"1-nna/{kind} {value:.3f} is below 0.5, which is over-fitting or chance, not success: "
                "0.5 is the ideal, 0 a copy of the reference"
            )
    for name, above, below in (
        ("roughness", "noise", "smoother than real"),
        ("uniformity", "outliers or uneven density", "noise"),
    ):
        (low, high), real = report.intervals[name], report.rows["held-out"][name]
        meaning = above if low > 1.1 * real else below if high < 0.9 * real else None
        if meaning:
            notes.append(
                f"{name} {report.values[name]:.3f} against {real:.3f} of real shapes: points do not lie as they do "
                f"on real surfaces ({meaning}), which 1-NNA, COV, MMD and JSD hardly see"
            )
    nearest = "nearest-train/cd"
    if nearest in report.values and report.intervals[nearest][1] < report.rows["held-out"][nearest]:
        notes.append(
            "the generated shapes lie nearer to the training set than held-out real shapes do: "
            "a sign of memorisation"
        )
    return notes


def _about_files(drawn: Drawn) -> list[str]:
    return [
        f"{num} of the {role} set could not be read, NaN and infinity among them, or have far too few points, and are "
        "left out: the set looks better than it is"
        for role, num in drawn.left_out.items()
    ]


def _about_protocol(drawn: Drawn, options: Options) -> list[str]:
    notes = []
    if options.protocol == "per_batch":
        batch, num = options.batch, min(len(drawn.sets[role]) for role in ("generated", "reference"))
        last = {role: len(drawn.sets[role]) - num // batch * batch for role in ("generated", "reference")}
        left = " and ".join(f"{extra} {role}" for role, extra in last.items() if extra)
        left = left and f" ({left} shapes at the end are left out)"
        notes.append(
            f"per-batch numbers must not be compared with set-level ones: among {batch} shapes at a time a "
            f"generator that repeats a few shapes scores like a perfect one, and COV and MMD are higher{left}"
        )
        if "oracle" in drawn.sets and (has := len(drawn.sets["oracle"]) // batch) < num // batch:
            mean = f"is the mean of {has} of {num // batch} batches" if has else "has no means"
            notes.append(f"the oracle's row {mean}: it has {len(drawn.sets['oracle'])} shapes")
    if is_approximate(options.kinds[-1]):
        excess = "half to one and a half times" if options.kinds[-1].endswith("_sq") else "a tenth to a third"
        notes.append(
            f"emd-{options.emd} is no distance but what a published kernel computes, {excess} above the exact "
            "value as a rule: compare it with tables of the same kernel alone"
        )
    if options.emd and options.emd_points is None and drawn.emd_points < drawn.points:
        notes.append(
            f"EMD is computed on {drawn.emd_points} of the {drawn.points} points, for {_why(options)}: more points "
            f"lower it (emd_points={drawn.points} takes all)"
        )
    least, most = drawn.given
    if least < options.points:
        mixed = f"clouds have {least} to {most} points" if most > least else f"clouds have {least} points"
        notes.append(
            f"{mixed}, fewer than the {options.points} asked for: all sets are measured at {least} points"
        )
    return notes


def _why(options: Options) -> str:
    if is_approximate(options.kinds[-1]):
        return "time, without a GPU"
    return "time, since the kernels are not compiled (install ditmoe again where there is a C++ compiler)"


def _about_copies(
    M: Mapping[tuple[str, str, Metric], np.ndarray], sets: Mapping[str, Sequence[np.ndarray]]
) -> list[str]:
    notes = []
    # A copy up to float32 rounding counts as one; 1e-10 of the mean square is far below two samples of one shape.
    tiny = 1e-10 * float(np.mean([np.var(cloud, axis=0).sum() for cloud in sets["reference"]]))
    in_reference = (M["reference", "generated", "cd"] <= tiny).any(axis=0)
    if in_reference.all():
        notes.append(
            "every generated shape is an exact copy of a reference shape: a set measured against itself "
            "tells nothing about a model"
        )
    elif in_reference.any():
        notes.append(f"{in_reference.sum()} generated shapes are exact copies of reference shapes")
    for role, meaning in (("generated", "memorised"), ("reference", "not held out")):
        matrix = M.get((role, "train", "cd"))
        copies = 0 if matrix is None else int((matrix <= tiny).any(axis=1).sum())
        if copies:
            notes.append(f"{copies} {role} shapes are exact copies of training shapes: {meaning}")
    return notes


def _about_range(sets: Mapping[str, Sequence[np.ndarray]]) -> list[str]:
    """Warn about points outside the sphere of radius .5 in which JSD counts, which are moved to its border."""
    outside = {
        role: float(np.mean([(np.linalg.norm(cloud, axis=1) > 0.52).mean() for cloud in sets[role]]))
        for role in ("generated", "reference")
    }
    if max(outside.values()) < 0.01:
        return []
    return [
        f"{outside['generated']:.0%} of the generated and {outside['reference']:.0%} of the real points lie "
        "outside the sphere of radius 0.5 that JSD counts in: it sees them at its border"
    ]
