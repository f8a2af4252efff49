"""Samples points from shapes, each in a separate process."""

import numpy as np
from tqdm import tqdm

from ditmoe.checkpoint import replacing
from ditmoe.outside import printable
from modalities.pointcloud.data.axes import turned
from modalities.pointcloud.data.formats import read_surface, write_npy
from modalities.pointcloud.data.partial import scan
from modalities.pointcloud.data.shape_jobs import Job
from modalities.shared import provenance
from modalities.shared.isolation import num_cores, run_isolated

FEW = 2048
"""Points of a sample in the default configuration; smaller clouds are reported."""


class UnwritableError(OSError):
    """Writing failed, which is not the fault of the input file."""


def sample_all(
    todo: list[Job], kept: int, workers: int | None, timeout: float
) -> tuple[dict[str, str], dict[str, str]]:
    """Sample each job; returns reasons for those that failed, and key -> hash of the output of the others."""
    reasons: dict[str, str] = {}
    contents: dict[str, str] = {}
    ended = run_isolated(_sample, todo, workers or num_cores(), lambda job: timeout)
    for job, result in tqdm(ended, "prepare", len(todo) + kept, unit="shape", initial=kept, disable=not todo):
        if isinstance(result, UnwritableError):
            raise result
        if isinstance(result, str):
            contents[job.key] = result
        else:
            reasons[job.name] = printable(result).removeprefix(f"{printable(job.source)}: ")
    return dict(sorted(reasons.items())), contents


def _sample(job: Job) -> str:
    notes: list[str] = []
    read = read_surface(job.source, job.num_points, job.seed, notes.append, job.item, job.channels)
    points = turned(read, job.up, job.channels)
    if len(points) < job.min_points:
        raise ValueError(f"a cloud must have min_points = {job.min_points} points, got {len(points)}")
    if len(points) < FEW:
        notes.append(f"only {len(points)} points")
    low, high = points[:, :3].min(0), points[:, :3].max(0)
    diagonal = float(np.linalg.norm(high - low))
    if not 0 < diagonal < np.inf:
        raise ValueError(f"points must have an extent, got a bounding-box diagonal of {diagonal}")
    try:
        if notes:
            with replacing(job.staged.with_suffix(".txt")) as stream:
                stream.write("; ".join(notes).encode(errors="replace"))
        points[:, :3] = (points[:, :3] - (low + high) / 2) / diagonal
        points = points.astype(np.float32)
        for view, key in enumerate(job.scans.values()):
            seen = scan(points[:, :3], np.random.default_rng([job.seed, view]))
            write_npy(job.staged.with_name(f"{key}.npy"), points[seen])
        write_npy(job.staged, points)
    except OSError as error:
        raise UnwritableError(error.errno, error.strerror, error.filename or str(job.staged)) from error
    return provenance.output(job.staged).content
