"""Evaluation of generated images: Fréchet and kernel distance, precision and recall, Inception score."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ditmoe.modality import Report, Samples
from modalities.image.metrics.features import Extractor, ImageSet, checked, extract, make, read_reference
from modalities.image.metrics.warnings import warnings
from modalities.shared import frechet
from modalities.shared.confidence import Estimate, wilson
from modalities.shared.frechet import Statistics

ROWS = ("features", "spatial", "probabilities")


@dataclass(frozen=True)
class Options:
    """Options of `evaluate_images`, documented there."""

    k: int
    split: int
    block: int
    groups: int
    seed: int


@dataclass(frozen=True)
class Side:
    """The features of one of the two sets.

    Attributes:
        found: features, and with ADM's protocol spatial features and class probabilities, a row per image.
        given: statistics under the same names from a file, which take precedence over `found`.
        labels: labels of the images, if any.
    """

    found: Mapping[str, np.ndarray]
    given: Mapping[str, Statistics] = field(default_factory=dict)
    labels: np.ndarray | None = None

    def whole(self, kind: str) -> np.ndarray | Statistics | None:
        """The input of a Fréchet distance: a file's statistics or its images, never a mixture."""
        return (self.given or self.found).get(kind)

    def take(self, rows: np.ndarray) -> "Side":
        labels = None if self.labels is None else self.labels[rows]
        return Side({kind: of[rows] for kind, of in self.found.items()}, {}, labels)

    def __len__(self) -> int:
        return len(self.found.get("features", ()))


def evaluate_images(
    generated: ImageSet,
    reference: ImageSet | str | Path,
    train: ImageSet | None = None,
    *,
    features: str = "pixels",
    protocol: str = "adm",
    weights: str | PathLike | None = None,
    k: int = 3,
    split: int = 5000,
    block: int = 1000,
    groups: int = 10,
    seed: int = 0,
    batch: int = 32,
    cache: str | PathLike | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Report:
    """Measure generated images against real ones.

        from modalities.image import evaluate_images
        report = evaluate_images(images, "VIRTUAL_imagenet256_labeled.npz", features="inception", weights="pt.pth")
        report.values["fid/adm"], report.intervals["fid/adm"]
        report.rows["floor"]["fid/adm"]    # the distance between real images

    Values, with formulas in `modalities.shared.frechet`: with Inception, fid/<protocol> and kid/<protocol>; with
    ADM's protocol, used in DiT's tables, also sfid/adm, is, precision and recall. Other features have other names:
    fd/, mmd/, precision/ and recall/ with "pixels" or "efficientnet-lite0". If both sets have labels,
    classes/agreement is the fraction of generated images whose nearest real image has their class.

    Rows: "floor", one random half of the reference against the other, as a perfect model would score with so few
    images; "oracle", as many training images in place of the generated ones; "corrected", Fréchet distances without
    their bias, as for infinitely many images, if the sets have at least two images per feature.
    Intervals are 95 %: by jackknife for Fréchet distances (of the expected value at these counts, bias included),
    from blocks and splits for kernel distance and Inception score, Wilson's for fractions, with the other set fixed.

    Args:
        generated, reference, train: `Samples` or arrays, uint8 RGB (S, H, W, 3). The reference may be an npz as
            published by ADM: statistics in mu and sigma (mu_s and sigma_s for sFID), images in arr_0, or either.
            Fréchet distances use the statistics; all else, the floor included, uses the images.
        features, protocol, weights, device: see `features.make`.
        k: nearest neighbours of precision and recall.
        split: images per split of the Inception score.
        block: images per block of the kernel distance.
        groups: groups of the jackknife; 0 omits intervals and bias of Fréchet distances, for speed.
        seed: seed of halves, groups, blocks, and the training images of the oracle.
        batch: images per step of the extractor.
        cache: folder for features and statistics of real images, named by content.
        progress: show a bar on stderr.

    Raises ValueError for images of another type or fewer than two, and for missing weights or keys.
    """
    options = Options(k, split, block, groups, seed)
    sets, statistics = _sets(generated, reference, train, seed)
    extractor = make(features, protocol, weights, device)
    look = partial(extract, extractor, batch=batch, progress=progress)
    sides = _sides(sets, statistics, look, None if cache is None else Path(cache))
    estimates = _estimates(sides["generated"], sides["reference"], extractor, options)
    shares = _shares(sides["generated"], sides["reference"], extractor, options)
    report = Report(
        _values(estimates, shares),
        _protocol(sides, sets, extractor, options),
        _intervals(estimates, shares),
        _rows(sides, extractor, options) | _corrected(sides, estimates, extractor),
    )
    biases = {name: estimate.bias for name, estimate in estimates.items()}
    num = sides["generated"].found["features"].shape[1]
    return replace(report, notes=warnings(report, sets, biases, num))


def _sets(
    generated: ImageSet, reference: ImageSet | str | Path, train: ImageSet | None, seed: int
) -> tuple[dict[str, Samples], dict[str, Statistics]]:
    """Images by role, "oracle" among them, and the statistics of a reference file."""
    statistics: dict[str, Statistics] = {}
    if isinstance(reference, str | Path):
        statistics, real = read_reference(Path(reference))
    else:  # checked before the generated images, of which a run makes as many
        real = checked(reference, "reference")
    sets = {"generated": checked(generated, "generated")}
    if real is not None:
        sets["reference"] = real
    if train is not None:
        sets["train"] = checked(train, "train")
        sets["oracle"] = _drawn(sets["train"], len(sets["generated"]), seed)
    return sets, statistics


def _drawn(train: Samples, num: int, seed: int) -> Samples:
    rows = np.sort(np.random.default_rng(seed).permutation(len(train))[:num])
    return Samples(train.data[rows], None if train.labels is None else train.labels[rows])


def _sides(
    sets: Mapping[str, Samples],
    statistics: Mapping[str, Statistics],
    look: Callable[..., Mapping[str, np.ndarray]],
    cache: Path | None,
) -> dict[str, Side]:
    sides, fresh = {"reference": Side({})}, None
    for role in ("generated", "reference", "oracle"):
        if role in sets:
            found = look(sets[role].data, None if role == "generated" else cache, like=fresh)
            fresh = fresh or found
            rows = {kind: found[kind] for kind in ROWS if kind in found}
            sides[role] = Side(rows, {}, sets[role].labels)
    num = sides["generated"].found["features"].shape[1]
    return sides | {"reference": _fitting(sides["reference"], statistics, num)}


def _fitting(reference: Side, statistics: Mapping[str, Statistics], num: int) -> Side:
    """The reference with the statistics of its file, if these have `num` features."""
    if "features" in statistics and len(statistics["features"].mu) == num:
        return replace(reference, given=statistics)
    if not len(reference):
        raise ValueError(
            f"the reference file holds statistics of {len(statistics['features'].mu)} features and no images, but "
            f"these features are {num}: Inception has 2048 (features=inception)"
        )
    return reference


def _estimates(generated: Side, real: Side, extractor: Extractor, options: Options) -> dict[str, Estimate]:
    out = {}
    for kind, name in (("features", extractor.distance), ("spatial", f"s{extractor.distance}")):
        against = real.whole(kind)
        if kind in generated.found and against is not None:
            out[name] = frechet.jackknife(generated.found[kind], against, options.groups, options.seed)
    if len(real):
        sides = generated.found["features"], real.found["features"]
        out[extractor.kernel] = frechet.kid(*sides, options.block, options.seed)
    if "probabilities" in generated.found:
        out["is"] = frechet.inception_score(generated.found["probabilities"], options.split)
    return out


def _shares(
    generated: Side, real: Side, extractor: Extractor, options: Options
) -> dict[str, tuple[float, int]]:
    """Fractions, each with its number of images."""
    out: dict[str, tuple[float, int]] = {}
    if min(len(real), len(generated)) > options.k:
        a, b = real.found["features"], generated.found["features"]
        suffix = "" if extractor.name == "adm" else f"/{extractor.name}"
        precision, recall = frechet.precision_recall(a, b, options.k)
        out |= {f"precision{suffix}": (precision, len(b)), f"recall{suffix}": (recall, len(a))}
    if len(real) and generated.labels is not None and real.labels is not None:
        distances = frechet.squared_distances(generated.found["features"], real.found["features"])
        nearest = np.concatenate([part.argmin(axis=1) for part in distances])
        agree = float((real.labels[nearest] == generated.labels).mean())
        out["classes/agreement"] = agree, len(generated)
    return out


def _values(estimates: Mapping[str, Estimate], shares: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    return {n: e.value for n, e in estimates.items()} | {n: share for n, (share, _) in shares.items()}


def _intervals(
    estimates: Mapping[str, Estimate], shares: Mapping[str, tuple[float, int]]
) -> dict[str, tuple[float, float]]:
    least = {name: -np.inf if name.startswith(("kid", "mmd")) else float(name == "is") for name in estimates}
    known = {n: e.interval(least[n]) for n, e in estimates.items() if np.isfinite(e.error)}
    return known | {name: wilson(*share) for name, share in shares.items()}


def _rows(sides: Mapping[str, Side], extractor: Extractor, options: Options) -> dict[str, dict[str, float]]:
    quick, real, rows = replace(options, groups=0), sides["reference"], {}

    def row(a: Side, b: Side) -> dict[str, float]:
        return _values(_estimates(a, b, extractor, quick), _shares(a, b, extractor, quick))

    if len(real) >= 4:
        one, other = (real.take(half) for half in frechet.halves(len(real), options.seed))
        rows["floor"] = row(one, other)
    if "oracle" in sides:
        rows["oracle"] = row(sides["oracle"], real)
    return rows


def _corrected(
    sides: Mapping[str, Side], estimates: Mapping[str, Estimate], extractor: Extractor
) -> dict[str, dict[str, float]]:
    """The row of Fréchet distances without their bias, if there are enough images to estimate it."""
    out = {}
    for kind, name in (("features", extractor.distance), ("spatial", f"s{extractor.distance}")):
        both = [sides[role].whole(kind) for role in ("generated", "reference")]
        many = all(len(of) >= 2 * of.shape[1] for of in both if isinstance(of, np.ndarray))
        if many and name in estimates and np.isfinite(estimates[name].error):
            out[name] = estimates[name].corrected
    return {"corrected": out} if out else {}


def _protocol(
    sides: Mapping[str, Side], sets: Mapping[str, Samples], extractor: Extractor, options: Options
) -> dict[str, Any]:
    real = sides["reference"]
    out: dict[str, Any] = dict(extractor.identity)
    out |= {role: f"{len(of)} images of {of.data.shape[1]} x {of.data.shape[2]}" for role, of in sets.items()}
    if real.given:
        out["reference statistics"] = f"from a file: {', '.join(real.given)}"
    if len(real) >= 4:
        out["floor"] = f"{len(real) // 2} real images against {len(real) // 2}"
    return out | {"covariance": "divided by S - 1, float64", **asdict(options)}
