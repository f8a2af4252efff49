"""Evaluation of shape completion: accuracy, fidelity to the scan, diversity; with baselines that need no model.

    cd        Chamfer distance to the true shape (`distance.chamfer`), mean over the completions of a scan
    f-score   fraction of both clouds within 2 % of the true box's diagonal of the other (`surface_quality.f_score`)
    hidden    mean distance from a hidden point of the true shape to the completion, over the diagonal of its box
    astray    mean distance from a new point of the completion to the true shape, over that diagonal: new are the
              points far from the scan, by the same distance as hidden ones
    uhd       unidirectional Hausdorff distance, max_{p in scan} min_{q in completion} |p - q|
    tmd       total mutual difference of k completions of a scan, sum_i 1/(k-1) sum_{j != i} CD(i, j): k times the
              mean of a pair, hence comparable only at equal k (10 in the literature)
    mmd       minimal matching distance, CD from a true shape to the nearest of all completions of all scans

UHD, TMD and MMD as in multimodal completion (Wu et al., arXiv 2003.07717); UHD in units of the coordinates, those
with CD in squared units. `hidden` is the completeness and `astray` the accuracy of the unobserved part: points spread
everywhere make the first small and the second large. CD and F-score favour one conservative answer, TMD grows with
any noise: so read them together.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from ditmoe.modality import Report, Samples
from ditmoe.outside import files_below, printable
from modalities.pointcloud.data.formats import SET_SUFFIXES, read_points
from modalities.pointcloud.metrics import confidence
from modalities.pointcloud.metrics.distance import implementation, pairwise
from modalities.pointcloud.metrics.surface_quality import f_score, tree_of

Cloud = Float[np.ndarray, "_ 3"]
HIDDEN = 0.03
"""A point of the true shape is hidden, and one of a completion new, if no scan point is within this distance, over
the diagonal of the shape's box."""
SCAN, MIRROR, NEAREST = "scan alone", "scan and mirror image", "nearest training shape"
"""Baseline rows that need no model."""


def measure(
    scans: Sequence[Cloud],
    completions: Sequence[Sequence[Cloud]],
    truth: Sequence[Cloud],
) -> dict[str, Float[np.ndarray, " n"]]:
    """The metrics of each scan's completions, and for mmd of each true shape.

    Args:
        completions: of each scan, the same number each; tmd is omitted if it is one.

    Raises:
        ValueError: if the numbers do not match.
    """
    num = {len(of) for of in completions}
    if not 0 < len(scans) == len(completions) == len(truth) or len(num) > 1 or 0 in num:
        raise ValueError(
            "completions need one true shape per scan and equally many completions of each, got "
            f"{len(scans)} scans, {len(truth)} shapes and {sorted(len(of) for of in completions)} completions"
        )
    rows = [_of_scan(*of) for of in zip(scans, completions, truth, strict=True)]
    found = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    every = [cloud for of in completions for cloud in of]
    return found | {"mmd": pairwise(list(truth), every, "cd").min(axis=1)}


def _of_scan(scan: Cloud, completions: Sequence[Cloud], truth: Cloud) -> dict[str, float]:
    diagonal = float(np.linalg.norm(np.ptp(truth, axis=0)))
    seen, shape = tree_of(scan), tree_of(truth)
    hidden, *new = (x[seen.query(x)[0] > HIDDEN * diagonal] for x in (truth, *completions))
    trees = [tree_of(cloud) for cloud in completions]
    clouds = list(completions)
    found = {
        "cd": pairwise(clouds, [truth], "cd").mean(),
        "f-score": np.mean([f_score(cloud, truth) for cloud in clouds]),
        "hidden": np.mean([tree.query(hidden)[0].mean() for tree in trees]) / diagonal if len(hidden) else 0,
        "astray": np.mean([shape.query(of)[0].mean() if len(of) else 0 for of in new]) / diagonal,
        "uhd": np.mean([tree.query(scan)[0].max() for tree in trees]),
    }
    if len(clouds) > 1:
        found["tmd"] = pairwise(clouds, clouds, "cd").sum() / (len(clouds) - 1)
    return {name: float(value) for name, value in found.items()}


def baselines(scans: Sequence[Cloud], train: Sequence[Cloud]) -> dict[str, list[list[Cloud]]]:
    """Baseline completions: the scan, the scan with its mirror image in x about 0, the nearest training shape if any.

    Nearest is the shape with the least mean squared distance from the scan's points to it.
    """
    sign = np.array([-1, 1, 1])
    found = {SCAN: [[scan] for scan in scans]}
    found[MIRROR] = [[np.concatenate([scan, scan * sign]).astype(scan.dtype)] for scan in scans]
    if len(train):
        trees = [tree_of(shape) for shape in train]
        ways = [[(tree.query(scan)[0] ** 2).mean() for tree in trees] for scan in scans]
        found[NEAREST] = [[train[int(np.argmin(way))]] for way in ways]
    return found


def means(each: Mapping[str, Float[np.ndarray, " n"]]) -> dict[str, float]:
    """Means over the scans."""
    return {name: float(values.mean()) for name, values in each.items()}


def shapes_of(truth: Sequence[Cloud]) -> Int[np.ndarray, " n"]:
    """The shape index of each scan: equal true clouds get the same index."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(cloud.tobytes(), len(numbers)) for cloud in truth])


def interval(
    values: Float[np.ndarray, " n"], shapes: Int[np.ndarray, " n"], seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a mean over scans, clustered by shape: several scans of one shape are resampled together."""
    sums, counts = np.bincount(shapes, values), np.bincount(shapes)
    drawn = [np.arange(len(counts))]
    return confidence.bootstrap(lambda i: sums[i].sum(axis=-1) / counts[i].sum(axis=-1), drawn, seed)


def intervals(
    each: Mapping[str, Float[np.ndarray, " n"]], shapes: Int[np.ndarray, " n"], seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Intervals of the means, see `interval`."""
    return {name: interval(values, shapes, seed) for name, values in each.items()}


def evaluate_completions(
    scans: Sequence[Cloud],
    completions: Sequence[Sequence[Cloud]],
    truth: Sequence[Cloud],
    train: Sequence[Cloud] = (),
    *,
    seed: int = 0,
) -> Report:
    """Measure completions of scans against the true shapes, all in the same units.

        report = evaluate_completions(scans, completions, truth, train)
        report.values["cd"], report.intervals["cd"], report.rows["scan and mirror image"]["cd"]

    Args:
        completions: k clouds for each scan.
        train: training shapes, for the nearest-shape row.

    Raises:
        ValueError: if the numbers do not match, or a cloud is empty or not finite.
    """
    each = measure(scans, completions, truth)
    rows = {name: means(measure(scans, of, truth)) for name, of in baselines(scans, train).items()}
    shapes, k = shapes_of(truth), len(completions[0])
    protocol = {
        "scans": f"{len(scans)} of {shapes.max() + 1} shapes, over which the intervals are",
        "completions of each": f"{k}, the k of tmd (10 in the literature)" if k > 1 else k,
        "points": f"{min(len(c) for of in completions for c in of)} of a completion, "
        f"{min(map(len, scans))} to {max(map(len, scans))} of a scan, {min(map(len, truth))} of a shape",
        "distances": implementation(),
    }
    return Report(means(each), protocol, intervals(each, shapes, seed), rows)


def evaluate_folder(
    scans: Path, generated: Samples, reference: Samples, train: Samples | None, seed: int
) -> Report:
    """Measure completions of the scans in a folder, one file each, in the order of their paths.

    Args:
        generated: all completions of the first scan, then all of the second, and so on.
        reference: the true shapes, in the order of the scans.

    Raises:
        ValueError, OSError: if the numbers do not match, or a scan cannot be read.
    """
    files = [path for path in files_below(scans) if path.suffix.lower() in SET_SUFFIXES]
    clouds = [read_points(path) for path in files]
    num = len(generated) // max(1, len(clouds))
    if not clouds or len(reference) != len(clouds) or num * len(clouds) != len(generated):
        raise ValueError(
            "completions need one true shape per scan and equally many completions of each, got "
            f"{len(clouds)} scans in {printable(scans)}, {len(reference)} shapes and {len(generated)} completions"
        )
    completions = [list(generated.data[i : i + num]) for i in range(0, len(generated), num)]
    shapes = [] if train is None else list(train.data)
    return evaluate_completions(clouds, completions, list(reference.data), shapes, seed=seed)
