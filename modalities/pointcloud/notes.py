"""Sentences that say where a number of an evaluation means something else than it seems."""

from collections.abc import Mapping, Sequence

import numpy as np

from ditmoe.modality import Report
from modalities.pointcloud.distance import Metric


def warnings(
    report: Report,
    sets: Mapping[str, Sequence[np.ndarray]],
    M: Mapping[tuple[str, str, Metric], np.ndarray],
    points: int,
) -> list[str]:
    """Sentences about a report of these sets; `points` were asked for, the sets have what was drawn."""
    generated, reference = len(sets["generated"]), len(sets["reference"])
    count = len(sets["generated"][0])
    notes = []
    if count < points:
        notes.append(
            f"the smallest cloud has {count} points, fewer than {points}: all sets are measured at {count}"
        )
    notes += _about_copies(M)
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
    for kind in ("cd", "emd"):
        value = report.values.get(f"1-nna/{kind}", 1.0)
        if value < 0.5:
            notes.append(
                f"1-nna/{kind} {value:.3f} is below 0.5, which is over-fitting or chance, not success: "
                "0.5 is the ideal, 0 a copy of the reference"
            )
    nearest = "nearest-train/cd"
    if nearest in report.values and report.intervals[nearest][1] < report.rows["held-out"][nearest]:
        notes.append(
            "the generated shapes lie nearer to the training set than held-out real shapes do: "
            "a sign of memorisation"
        )
    return notes


def _about_copies(M: Mapping[tuple[str, str, Metric], np.ndarray]) -> list[str]:
    notes = []
    in_reference = (M["reference", "generated", "cd"] == 0).any(axis=0)
    if in_reference.all():
        notes.append(
            "every generated shape is an exact copy of a reference shape: a set measured against itself "
            "tells nothing about a model"
        )
    elif in_reference.any():
        notes.append(f"{in_reference.sum()} generated shapes are exact copies of reference shapes")
    for role, meaning in (("generated", "memorised"), ("reference", "not held out")):
        matrix = M.get((role, "train", "cd"))
        copies = 0 if matrix is None else int((matrix == 0).any(axis=1).sum())
        if copies:
            notes.append(f"{copies} {role} shapes are exact copies of training shapes: {meaning}")
    return notes


def _about_range(sets: Mapping[str, Sequence[np.ndarray]]) -> list[str]:
    """JSD counts in a sphere of radius .5; what lies outside is moved to its border."""
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
