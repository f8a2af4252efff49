"""The evaluation protocol for clouds: options, equal numbers of points, and a matched draw of real shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import scipy

from ditmoe.modality import Samples
from ditmoe.outside import TooFewError, has_cuda
from modalities.pointcloud import kernels
from modalities.pointcloud.data.formats import ReadSet
from modalities.pointcloud.metrics import surface_quality
from modalities.pointcloud.metrics.distance import Metric, emd_metric, implementation, is_approximate
from modalities.pointcloud.metrics.normalise import check_mode, normalised

CloudSet = Samples | np.ndarray | Sequence[np.ndarray]
PROTOCOLS = ("set", "per_batch")


@dataclass(frozen=True)
class Options:
    """Options of `evaluation.evaluate_sets`; ValueError for invalid ones."""

    points: int
    emd: str | None
    emd_points: int | None
    protocol: str
    batch: int
    normalisation: str
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("points", 1), ("emd_points", 1), ("batch", 2)):
            if (number := getattr(self, name)) is not None and number < least:
                raise ValueError(f"{name} must be at least {least}, got {number}")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        if self.emd is not None:
            emd_metric(self.emd)
        check_mode(self.normalisation)

    @property
    def kinds(self) -> list[Metric]:
        """The distances used for 1-NNA, COV and MMD."""
        return ["cd"] if self.emd is None else ["cd", emd_metric(self.emd)]


@dataclass(frozen=True)
class Drawn:
    """The preprocessed sets to compare.

    Attributes:
        sets: role (generated, reference and maybe train, oracle) -> clouds of equal numbers of points.
        labels: labels of generated and reference, or None without several classes.
        given: fewest and most points of the clouds before subsampling.
        emd_points: number of these points used for EMD.
        units: description of the normalisation.
        left_out: role -> unreadable files of a folder and clouds with far too few points, if any.
    """

    sets: Mapping[str, list[np.ndarray]]
    labels: Mapping[str, np.ndarray | None]
    given: tuple[int, int]
    emd_points: int
    units: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def points(self) -> int:
        return len(self.sets["generated"][0])


def draw(given: Mapping[str, CloudSet], options: Options) -> Drawn:
    """Check the sets, subsample the points of each cloud, normalise them, and draw the oracle."""
    sets = {role: read_clouds(data, role) for role, data in given.items()}
    labels = {role: read_labels(data, role) for role, data in given.items()}
    least = min(len(sets["generated"]), len(sets["reference"]))
    if options.protocol == "per_batch" and least < options.batch:
        raise ValueError(f"protocol=per_batch needs {options.batch} shapes in each set, got {least}")
    sizes = [len(cloud) for clouds in sets.values() for cloud in clouds]
    count = min(options.points, *sizes)
    sets = {role: draw_points(clouds, count, options.seed) for role, clouds in sets.items()}
    sets, units = normalised(sets, options.normalisation)
    if "train" in sets:
        wanted = len(sets["generated"]), labels["generated"], labels["train"], len(sets["train"])
        picked = draw_like(*wanted, options.seed)
        sets["oracle"] = [sets["train"][i] for i in picked]
    labels = {role: labels[role] for role in ("generated", "reference")}
    classes = np.unique(labels["reference"]) if labels["reference"] is not None else np.empty(0)
    if len(classes) < 2:
        labels["reference"] = None
    if labels["generated"] is not None and not np.isin(labels["generated"], classes).any():
        labels["generated"] = None  # generated without a class
    left_out = {
        role: data.left_out for role, data in given.items() if isinstance(data, ReadSet) and data.left_out
    }
    return Drawn(sets, labels, (min(sizes), max(sizes)), min(_emd_points(options), count), units, left_out)


def _emd_points(options: Options) -> int:
    if options.emd_points is not None:
        return options.emd_points
    fast = has_cuda() if is_approximate(options.kinds[-1]) else kernels.available()
    return options.points if fast else 512


def read_clouds(data: CloudSet, role: str) -> list[np.ndarray]:
    """Check a set and return its clouds as float64 (N_i, 3).

    Raises ValueError, naming the set by its `role`, if it has fewer than two clouds, a cloud is not
    (N, 3) or has no points, or a point is NaN or infinite.
    """
    given = data.data if isinstance(data, Samples) else data
    clouds = [np.asarray(cloud, dtype=np.float64) for cloud in given]
    if len(clouds) < 2:
        raise TooFewError(f"the {role} set must have at least 2 clouds, got {len(clouds)}")
    for i, cloud in enumerate(clouds):
        if cloud.ndim != 2 or cloud.shape[1] != 3 or len(cloud) == 0:
            raise ValueError(f"the {role} set must be clouds of (N, 3), got {cloud.shape} at index {i}")
    broken = [i for i, cloud in enumerate(clouds) if not np.isfinite(cloud).all()]
    if broken:
        raise ValueError(
            f"the points of the {role} set must be finite, got NaN or infinity in {len(broken)} of "
            f"{len(clouds)} clouds, the first at index {broken[0]}"
        )
    return clouds


def read_labels(data: CloudSet, role: str) -> np.ndarray | None:
    """Labels of a set, or None; ValueError unless there is one per cloud."""
    if not isinstance(data, Samples) or data.labels is None:
        return None
    if len(data.labels) != len(data):
        raise ValueError(
            f"the {role} set must have one label a cloud, got {len(data.labels)} for {len(data)}"
        )
    return np.asarray(data.labels)


def draw_points(clouds: Sequence[np.ndarray], count: int, seed: int) -> list[np.ndarray]:
    """Sample `count` points of each cloud without replacement.

    The choice depends only on the seed and the cloud's size. So copies stay copies in any position, with
    distance zero; and the first k of `count` points are those of a draw of k.
    """
    orders = {
        size: np.random.default_rng((seed, size)).permutation(size) for size in {len(c) for c in clouds}
    }
    return [cloud[orders[len(cloud)][:count]] for cloud in clouds]


def draw_like(
    num: int, labels: np.ndarray | None, train_labels: np.ndarray | None, num_train: int, seed: int
) -> np.ndarray:
    """Random indices of `num` training shapes (all, if there are fewer) without replacement.

    With labels on both sides, each label as often as in `labels`; shortages are filled from the other shapes.
    """
    order = np.random.default_rng((seed, num_train)).permutation(num_train)
    if labels is None or train_labels is None:
        return order[:num]
    wanted = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    same = [i for label, n in wanted.items() for i in order[train_labels[order] == label][:n]]
    others = [i for i in order if i not in set(same)]
    return np.array([*same, *others][:num], dtype=np.int64)


def describe(drawn: Drawn, options: Options) -> dict[str, Any]:
    """Everything needed to reproduce the numbers of a comparison."""
    try:
        version = metadata.version("ditmoe")
    except metadata.PackageNotFoundError:
        version = "not installed"
    least, most = drawn.given
    protocol = "set: leave-one-out 1-NNA, COV and MMD over the full set-level matrices"
    if options.protocol == "per_batch":
        protocol = f"per_batch: 1-NNA, COV and MMD as means over consecutive mini-batches of {options.batch}"
    emd = f"{options.emd}, {drawn.emd_points} points"
    if is_approximate(options.kinds[-1]):
        emd += ", approximate matching in float32, the real shape first"
    return {
        **{role: f"{len(clouds)} shapes" for role, clouds in drawn.sets.items()},
        **{
            f"{role} left out": f"{num}, unreadable or of far too few points"
            for role, num in drawn.left_out.items()
        },
        "protocol": protocol,
        "points": drawn.points,
        "resampling": f"drawn without replacement from {least if least == most else f'{least} to {most}'}",
        "cd": "mean squared distance to the nearest point, both directions added",
        "emd": emd if options.emd else "left out",
        "distances": implementation(),
        "jsd": "28^3 grid in the sphere of radius 0.5, log base 2",
        "dcd": f"alpha {surface_quality.SHARPNESS:g}, each real shape with the one nearest by cd",
        "f-score": f"threshold {surface_quality.THRESHOLD:g} of the real shape's diagonal, the same pairs",
        "normalisation": drawn.units,
        "intervals": "95 %: from random halves of the sets; of searched distances from the spread over nearest "
        "neighbours, COV's as a plain fraction's; of what each shape has by itself by bootstrap; of batches by "
        "Student's t, at least Wilson's",
        "seed": options.seed,
        "version": f"ditmoe {version} scipy {scipy.__version__}",
    }
