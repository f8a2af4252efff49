"""How good a set of generated clouds is: MMD, COV, 1-NNA, JSD, and whether it was memorised."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from ditmoe.modality import Report
from modalities.pointcloud import interval, kernels
from modalities.pointcloud.distance import Metric, num_pairs, pairwise
from modalities.pointcloud.notes import warnings
from modalities.pointcloud.occupancy import cells_of, divergence, jsd
from modalities.pointcloud.protocol import (
    CloudSet,
    common_points,
    describe,
    draw_like,
    draw_points,
    read_clouds,
    read_labels,
)

__all__ = ["evaluate_sets", "jsd", "mmd_cov", "one_nna"]

Which = tuple[str, str, Metric]
"""Which matrix: the set of its rows, the set of its columns, the distance."""


def mmd_cov(M_rs: Float[np.ndarray, "R S"]) -> tuple[float, float]:
    """Minimum matching distance and coverage: how near the generated shapes come to each real one.

    MMD = (1/R) Σ_r min_s d(r, s), in units of the distance; COV = |{argmin_r d(r, s) : s}| / R in [0, 1]
    (Achlioptas et al., arXiv 1707.02392; PointFlow, arXiv 1906.12320, section 5.1). Rows are the reference:
    of the transposed matrix both mean something else.
    """
    return float(M_rs.min(axis=1).mean()), len(np.unique(M_rs.argmin(axis=0))) / len(M_rs)


def one_nna(
    M_rr: Float[np.ndarray, "R R"], M_rs: Float[np.ndarray, "R S"], M_ss: Float[np.ndarray, "S S"]
) -> tuple[float, float, float]:
    """Accuracy of a nearest-neighbour classifier in telling real shapes from generated ones.

    Each shape of both sets is classified by its nearest other one (leave-one-out over the full matrices,
    Lopez-Paz and Oquab, arXiv 1610.06545; PointFlow, arXiv 1906.12320, section 5.1). 0.5 is ideal, 1 means that
    the sets are apart, and 0 that one copies the other. Among equally near ones their shares count, so the
    order of sets and shapes does not matter.

    Returns:
        Overall, of the real shapes alone (acc_t), of the generated ones alone (acc_f); in [0, 1].
    """
    num_ref, num_sample = M_rs.shape
    M = np.block([[M_rr, M_rs], [M_rs.T, M_ss]]).astype(np.float64)
    np.fill_diagonal(M, np.inf)
    nearest = np.equal(M, M.min(axis=0))
    real = nearest[:num_ref].sum(axis=0) / nearest.sum(axis=0)
    right_ref, right_sample = real[:num_ref], 1 - real[num_ref:]
    overall = (right_ref.sum() + right_sample.sum()) / (num_ref + num_sample)
    return float(overall), float(right_ref.mean()), float(right_sample.mean())


def evaluate_sets(
    generated: CloudSet,
    reference: CloudSet,
    train: CloudSet | None = None,
    *,
    points: int = 2048,
    emd_points: int | None = None,
    emd: bool = True,
    seed: int = 0,
    normalisation: str = "none beyond the units given",
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Measure generated clouds against real ones they were not trained on.

    Values: 1-nna/cd (overall, /real, /generated), cov/cd, mmd/cd, the same with emd, and jsd. With `train`,
    also nearest-train/cd: the median Chamfer distance of a generated shape to its nearest training shape;
    the row "oracle" holds the metrics of real training shapes in place of the generated ones, and the row
    "held-out" the nearest-train/cd of the reference, which the training set has never seen.

    Intervals are of 95 %, over the draw of shapes: from random halves of both sets
    (`interval.half_sampling`, somewhat too wide rather than too narrow), by bootstrap for the median.

    Args:
        generated, reference, train: `Samples`, (S, N, 3), or lists of (N_i, 3); sets may differ in size. All
            in the same units.
        points: points of each cloud that are drawn without replacement; where a cloud has fewer, all sets
            are brought to the smallest.
        emd_points: of those, the ones exact EMD is computed on. None takes all with the compiled kernels, and
            512 without: by SciPy 2,048 points take seconds a pair. The protocol says which it was.
        emd: False leaves EMD out.
        seed: of the points, of the oracle's shapes and of the intervals.
        normalisation: what was done to the units, for the protocol.
        workers: threads; None takes all cores.
        progress: show a bar on stderr.

    Raises ValueError where a set has fewer than two clouds, a cloud is not (N, 3), or a point not finite.
    """
    if emd_points is None:
        emd_points = points if kernels.available() else 512
    for name, number in (("points", points), ("emd_points", emd_points)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    given = {"generated": generated, "reference": reference} | ({} if train is None else {"train": train})
    sets = {role: read_clouds(data, role) for role, data in given.items()}
    labels = {role: read_labels(data, role) for role, data in given.items()}
    count = common_points(sets, points)
    sets = {role: draw_points(clouds, count, seed) for role, clouds in sets.items()}
    if "train" in sets:
        sizes = len(sets["generated"]), labels["generated"], labels["train"], len(sets["train"])
        sets["oracle"] = [sets["train"][i] for i in draw_like(*sizes, seed)]

    num_emd = min(emd_points, count) if emd else None
    M = _matrices(sets, num_emd, workers, progress)
    kinds: list[Metric] = ["cd", "emd"] if emd else ["cd"]
    cells = {role: cells_of(sets[role]) for role in sets if role != "train"}
    values = _scores(M, cells, kinds, "generated")
    intervals = _intervals(M, cells, kinds, values, seed)
    rows: dict[str, dict[str, float]] = {}
    if "train" in sets:
        rows["oracle"] = _scores(M, cells, kinds, "oracle")
        nearest = {role: M[role, "train", "cd"].min(axis=1) for role in ("generated", "reference")}
        values["nearest-train/cd"] = float(np.median(nearest["generated"]))
        rows["held-out"] = {"nearest-train/cd": float(np.median(nearest["reference"]))}
        intervals["nearest-train/cd"] = interval.of_median(nearest["generated"], seed)
    protocol = describe(sets, num_emd, seed, normalisation)
    report = Report(values, protocol, intervals, rows)
    return replace(report, notes=warnings(report, sets, M, points))


def _matrices(
    sets: Mapping[str, Sequence[np.ndarray]], emd_points: int | None, workers: int | None, progress: bool
) -> dict[Which, np.ndarray]:
    """Every distance that the report needs: (set of the rows, set of the columns, metric) -> matrix."""
    pairs = [("reference", "generated"), *((role, role) for role in sets if role != "train")]
    if "train" in sets:
        pairs += [("reference", "oracle")]
    jobs: list[Which] = [(a, b, "cd") for a, b in pairs]
    if "train" in sets:
        jobs += [("reference", "train", "cd"), ("generated", "train", "cd")]
    clouds: dict[Metric, Mapping[str, Sequence[np.ndarray]]] = {"cd": sets}
    if emd_points is not None:
        jobs += [(a, b, "emd") for a, b in pairs]
        clouds["emd"] = {role: [cloud[:emd_points] for cloud in set_] for role, set_ in sets.items()}
    # One bar for both metrics tells the time left only if it counts time, not pairs.
    cost = {kind: _seconds_a_pair(clouds[kind], kind) for kind in clouds}
    total = sum(cost[kind] * num_pairs(clouds[kind][a], clouds[kind][b]) for a, b, kind in jobs)
    out = {}
    with tqdm(
        total=total,
        desc="distances",
        bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left",
        disable=not progress,
        smoothing=0.05,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    ) as bar:
        for a, b, kind in jobs:

            def advance(done: int, seconds: float = cost[kind]) -> None:
                bar.update(done * seconds)

            out[a, b, kind] = pairwise(clouds[kind][a], clouds[kind][b], kind, workers, advance)
    return out


def _seconds_a_pair(sets: Mapping[str, Sequence[np.ndarray]], kind: Metric) -> float:
    times = []
    for a, b in zip(sets["generated"][:3], sets["reference"], strict=False):
        start = time.perf_counter()
        pairwise([a], [b], kind, workers=1)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _scores(
    M: Mapping[Which, np.ndarray],
    cells: Mapping[str, np.ndarray],
    kinds: Sequence[Metric],
    role: str,
) -> dict[str, float]:
    """All metrics of the set of this role against the reference."""
    scores: dict[str, float] = {}
    for kind in kinds:
        M_rs = M["reference", role, kind]
        overall, real, generated = one_nna(M["reference", "reference", kind], M_rs, M[role, role, kind])
        scores |= {f"1-nna/{kind}": overall, f"1-nna/{kind}/real": real, f"1-nna/{kind}/generated": generated}
        scores[f"mmd/{kind}"], scores[f"cov/{kind}"] = mmd_cov(M_rs)
    scores["jsd"] = divergence(cells[role], cells["reference"])
    return scores


def _intervals(
    M: Mapping[Which, np.ndarray],
    cells: Mapping[str, np.ndarray],
    kinds: Sequence[Metric],
    values: Mapping[str, float],
    seed: int,
) -> dict[str, tuple[float, float]]:
    """95 % interval of each of these `_scores` of the generated set."""
    num = {role: len(cells[role]) for role in ("reference", "generated")}

    def scores(ref: np.ndarray, sample: np.ndarray) -> np.ndarray:
        keep = {"reference": ref, "generated": sample}
        part = {
            (a, b, kind): M[a, b, kind][np.ix_(keep[a], keep[b])]
            for a, b, kind in M
            if a in keep and b in keep
        }
        some = {role: cells[role][kept] for role, kept in keep.items()}
        return np.array(list(_scores(part, some, kinds, "generated").values()))

    errors = interval.half_sampling(scores, num["reference"], num["generated"], seed)
    out = {}
    for (name, value), error in zip(values.items(), errors.tolist(), strict=True):
        if name.startswith(("1-nna", "cov")):
            out[name] = interval.of_fraction(value, error, _num_counted(name, num))
        else:
            out[name] = interval.around(value, error, high=1.0 if name == "jsd" else np.inf)
    return out


def _num_counted(name: str, num: Mapping[str, int]) -> int:
    """Of how many shapes this metric is a fraction."""
    if name.endswith("/generated"):
        return num["generated"]
    return num["reference"] if name.startswith("cov") or name.endswith("/real") else sum(num.values())
