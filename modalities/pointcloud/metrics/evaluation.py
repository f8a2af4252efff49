"""Evaluation of generated clouds: quality, diversity, surface quality, memorisation."""

import inspect
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ditmoe.modality import Report
from ditmoe.outside import TooFewError
from modalities.pointcloud.metrics import confidence, memorisation
from modalities.pointcloud.metrics.distance import Metric, is_approximate
from modalities.pointcloud.metrics.distance_matrices import (
    SEARCH,
    Job,
    Which,
    cross_jobs,
    measure,
    search,
    set_jobs,
)
from modalities.pointcloud.metrics.jsd import cells_of, divergence, jsd
from modalities.pointcloud.metrics.nearest import num_pairs
from modalities.pointcloud.metrics.protocol import CloudSet, Drawn, Options, describe, draw
from modalities.pointcloud.metrics.scores import class_scores, mmd_cov, one_nna
from modalities.pointcloud.metrics.surface_quality import dcd, f_score, roughness, uniformity
from modalities.pointcloud.metrics.warnings import warnings
from modalities.shared.cache import kept_in
from modalities.shared.isolation import num_cores

__all__ = ["evaluate_sets", "jsd", "mmd_cov", "one_nna"]

Matrices = Mapping[Which, np.ndarray]
Cells = Mapping[str, np.ndarray]
Labels = Mapping[str, np.ndarray | None]
Sets = Mapping[str, Sequence[np.ndarray]]


def evaluate_sets(
    generated: CloudSet,
    reference: CloudSet,
    train: CloudSet | None = None,
    *,
    points: int = 2048,
    emd: str | None = "exact_l2",
    emd_points: int | None = None,
    protocol: str = "set",
    batch: int = 8,
    normalisation: str = "none",
    cache: str | PathLike | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Measure generated clouds against real ones they were not trained on.

        from modalities.pointcloud import evaluate_sets
        report = evaluate_sets(generated, reference, train)   # (S, N, 3) arrays, or lists of (N_i, 3)
        report.values["1-nna/emd"], report.intervals["1-nna/emd"]
        report.rows["oracle"]["1-nna/emd"]                    # what real training shapes would score
        print(*report.notes, sep="\\n")                        # where a number means something else

    Values, each with its formula where it is computed: 1-nna/cd (overall, /real, /generated), cov/cd and mmd/cd
    (`scores`), the same with emd, jsd (`jsd`); dcd and f-score of each real shape and its nearest generated one by
    Chamfer, uniformity and roughness of each generated shape (`surface_quality`), as means; with labels of the
    reference, classes/... (`scores`); with `train`, nearest-train/... and novelty (`memorisation`). The row "oracle"
    has the same for real training shapes in place of the generated ones, and the row "held-out" the values of the
    reference itself.

    Intervals are 95 %, over the sampling of shapes: from random halves of both sets (`confidence.half_sampling`,
    slightly conservative), from nearest neighbours only if these were searched (`confidence.of_neighbours`), by
    bootstrap for per-shape values.

    Args:
        generated, reference, train: `Samples`, (S, N, 3), or lists of (N_i, 3); sets may differ in size. All in the
            same units.
        points: points per cloud, sampled without replacement; if a cloud has fewer, all sets are subsampled to the
            smallest.
        emd: which of the four EMDs of `distance`; None omits it. Only exact_l2 is reported as "emd", the others by
            their own names, as in "1-nna/emd-approx_sq". The approximate ones take the real shape first.
        emd_points: how many of those points EMD uses. None takes all with the compiled kernels (or a GPU, for the
            approximate variants) and 512 without, where 2,048 points take up to seconds per pair.
        protocol: "set"; or "per_batch", the mean of 1-NNA, COV and MMD over consecutive pairs of mini-batches, as some
            code reports: not comparable with the former, and named differently ("1-nna/cd/per-batch-8").
        batch: shapes in such a batch; an incomplete last one is left out.
        cache: folder where slow distances are cached by the content of the sets, so that an interrupted evaluation
            resumes, and those within a reference set are computed once; None disables it.
        normalisation: normalisation of units: none, global, per_shape_box or unit_sphere (`normalise`).
        seed: seed of the points, of the oracle's shapes and of the intervals.
        workers: threads; None takes all cores.
        progress: show a bar on stderr.

    Raises ValueError if a set has fewer than two clouds, a cloud is not (N, 3), a point is not finite, or an
    option is invalid.
    """
    options = Options(points, emd, emd_points, protocol, batch, normalisation, seed)
    given = {"generated": generated, "reference": reference} | ({} if train is None else {"train": train})
    drawn = draw(given, options)
    folder, searches = Path(cache) if cache else None, {}
    with kept_in(folder):
        M, *parts = measure(_jobs(drawn, options), folder, workers, progress)
        for kind in _searched(drawn, options):
            clouds = {role: [c[: drawn.emd_points] for c in of] for role, of in drawn.sets.items()}
            found, searches[kind] = search(clouds, kind, folder, workers, progress)
            M |= found
    cells = {role: cells_of(clouds) for role, clouds in drawn.sets.items() if role != "train"}
    each = {role: _of_each_shape(drawn.sets, M, role, workers) for role in cells}

    def row(role: str) -> dict[str, float]:
        averages, _ = _averages(parts, options, role)
        return averages | _scores(M, cells, drawn.labels, options, role) | _means(each[role])

    values = row("generated")
    intervals = _averages(parts, options, "generated")[1]
    intervals |= _intervals(M, cells, drawn.labels, options, list(searches))
    intervals |= {n: confidence.bootstrap(confidence.mean, [v], seed) for n, v in each["generated"].items()}
    rows = ({"oracle": row("oracle")} if "oracle" in cells else {}) | {"held-out": _means(each["reference"])}
    if "train" in drawn.sets:
        ways = {role: M[role, "train", "cd"].min(axis=1) for role in ("generated", "reference")}
        values |= memorisation.nearest_train(ways["generated"], ways["reference"])
        intervals |= memorisation.intervals(ways["generated"], ways["reference"], seed)
        rows["held-out"] |= memorisation.nearest_train(ways["reference"], ways["reference"])
    protocol_used = describe(drawn, options)
    protocol_used |= {f"{kind} search": "; ".join(lines) for kind, lines in searches.items()}
    report = Report(values, protocol_used, intervals, rows)
    return replace(report, notes=warnings(report, drawn, M, options))


def check_set(num: int, options: Mapping[str, Any]) -> None:
    """Raise ValueError if `evaluate_sets` could not use these options, and TooFewError for too few clouds."""
    defaults = inspect.signature(evaluate_sets).parameters
    chosen = Options(**{f.name: options.get(f.name, defaults[f.name].default) for f in fields(Options)})
    if (workers := options.get("workers")) is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    least = chosen.batch if chosen.protocol == "per_batch" else 2
    if num < least:
        raise TooFewError(f"an evaluation needs at least {least} real clouds, test has {num}")


def _searched(drawn: Drawn, options: Options) -> list[Metric]:
    """The distances that use a nearest-neighbour search rather than all pairs."""
    sets = drawn.sets["reference"], drawn.sets["generated"]
    if options.protocol != "set" or num_pairs(*sets) < SEARCH:
        return []
    return [kind for kind in options.kinds if kind != "cd" and not is_approximate(kind)]


def _jobs(drawn: Drawn, options: Options) -> list[dict[Which, Job]]:
    """The distance matrices to compute: for the whole sets, then for each mini-batch."""
    cut = {kind: drawn.points if kind == "cd" else drawn.emd_points for kind in options.kinds}
    clouds: dict[Metric, Sets] = {
        kind: {role: [cloud[:count] for cloud in of] for role, of in drawn.sets.items()}
        for kind, count in cut.items()
    }
    whole = cross_jobs(clouds["cd"])
    if options.protocol == "set":
        kinds = [kind for kind in options.kinds if kind not in _searched(drawn, options)]
        return [whole | {which: job for kind in kinds for which, job in set_jobs(clouds[kind], kind).items()}]
    num = min(len(drawn.sets[role]) for role in ("generated", "reference")) // options.batch
    parts = []
    for start in range(0, num * options.batch, options.batch):
        part: dict[Which, Job] = {}
        for kind in options.kinds:
            some = {role: of[start : start + options.batch] for role, of in clouds[kind].items()}
            whole_ones = {role: of for role, of in some.items() if len(of) == options.batch}
            part |= set_jobs(whole_ones, kind)  # the oracle may have fewer batches
        parts.append(part)
    return [whole, *parts]


def _scores(M: Matrices, cells: Cells, labels: Labels, options: Options, role: str) -> dict[str, float]:
    """All set-level scores of the set with this role against the reference."""
    scores = {} if options.protocol == "per_batch" else _set_scores(M, options, role)
    scores["jsd"] = divergence(cells[role], cells["reference"])
    real = labels["reference"]
    if real is not None:
        asked = labels["generated"] if role == "generated" else None
        scores |= class_scores(M["reference", role, "cd"], real, asked)
    return scores


def _set_scores(M: Matrices, options: Options, role: str) -> dict[str, float]:
    scores: dict[str, float] = {}
    for kind in options.kinds:
        M_rs = M["reference", role, kind]
        overall, real, generated = one_nna(M["reference", "reference", kind], M_rs, M[role, role, kind])
        scores |= {f"1-nna/{kind}": overall, f"1-nna/{kind}/real": real, f"1-nna/{kind}/generated": generated}
        scores[f"mmd/{kind}"], scores[f"cov/{kind}"] = mmd_cov(M_rs)
    return scores


def _averages(
    parts: Sequence[Matrices], options: Options, role: str
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Means over mini-batches under separate names, and intervals from their spread."""
    kind = options.kinds[0]
    scores = [_set_scores(part, options, role) for part in parts if (role, role, kind) in part]
    values, intervals = {}, {}
    for name in (name for name in (scores[0] if scores else {}) if name.count("/") == 1):
        found = np.array([score[name] for score in scores])
        own = f"{name}/per-batch-{options.batch}"
        values[own] = float(found.mean())
        if len(found) > 1:
            count = 0 if name.startswith("mmd") else options.batch * (2 if name.startswith("1-nna") else 1)
            intervals[own] = confidence.of_batches(found, count)
    return values, intervals


def _of_each_shape(sets: Sets, M: Matrices, role: str, workers: int | None) -> dict[str, np.ndarray]:
    """Per-shape values of a set, and of each real shape with its nearest one in the set."""
    clouds, real = sets[role], sets["reference"]
    with ThreadPoolExecutor(workers or num_cores()) as pool:
        found: dict[str, np.ndarray] = {}
        if role != "reference":
            nearest = [clouds[i] for i in M["reference", role, "cd"].argmin(axis=1)]
            found["dcd"] = np.array(list(pool.map(dcd, nearest, real)))
            found["f-score"] = np.array(list(pool.map(f_score, nearest, real)))
        found["uniformity"] = np.array(list(pool.map(uniformity, clouds)))
        found["roughness"] = np.array(list(pool.map(roughness, clouds)))
        return found


def _means(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in found.items()}


def _intervals(
    M: Matrices, cells: Cells, labels: Labels, options: Options, searched: Sequence[Metric]
) -> dict[str, tuple[float, float]]:
    """95 % interval of each of the `_scores` of the generated set."""
    values = _scores(M, cells, labels, options, "generated")
    num = {role: len(cells[role]) for role in ("reference", "generated")}
    halved = replace(options, emd=None) if searched else options  # a search does not cover halves

    def scores(ref: np.ndarray, sample: np.ndarray) -> dict[str, float]:
        keep = {"reference": ref, "generated": sample}
        part = {
            (a, b, kind): M[a, b, kind][np.ix_(keep[a], keep[b])]
            for a, b, kind in M
            if a in keep and b in keep and kind in halved.kinds
        }
        some = {role: cells[role][kept] for role, kept in keep.items()}
        named = {role: None if (of := labels[role]) is None else of[kept] for role, kept in keep.items()}
        return _scores(part, some, named, halved, "generated")

    counts = num["reference"], num["generated"]
    spread = confidence.half_sampling(
        lambda *halves: np.array([*scores(*halves).values()]), *counts, options.seed
    )
    errors = dict(zip(scores(*map(np.arange, counts)), spread.tolist(), strict=True))
    for kind in searched:
        errors |= _neighbours_errors(M, kind)
    out = {}
    for name, value in values.items():
        if name.startswith(("1-nna", "cov")) or name == "classes/agreement":
            out[name] = confidence.of_fraction(value, errors[name], _num_counted(name, num))
        else:
            out[name] = confidence.around(value, errors[name], np.inf if name.startswith("mmd") else 1.0)
    return out


def _neighbours_errors(M: Matrices, kind: Metric) -> dict[str, float]:
    """Standard errors of the scores from a search; none for COV, which is treated as a plain fraction."""
    pairs = ("reference", "reference"), ("reference", "generated"), ("generated", "generated")
    errors = confidence.of_neighbours(*(M[a, b, kind] for a, b in pairs))
    names = f"1-nna/{kind}", f"1-nna/{kind}/real", f"1-nna/{kind}/generated", f"mmd/{kind}"
    return {**dict(zip(names, errors, strict=True)), f"cov/{kind}": 0.0}


def _num_counted(name: str, num: Mapping[str, int]) -> int:
    """Number of shapes of which this metric is a fraction."""
    if name.endswith(("/generated", "/agreement")):
        return num["generated"]
    return num["reference"] if name.startswith("cov") or name.endswith("/real") else sum(num.values())
