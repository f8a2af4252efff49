"""Which classes of point clouds are drawn badly, and at which noise? Loss and surfaces by class.

    python -m benchmarks.quality.cloud_classes runs/pointcloud/default

Two tables. First, the loss of the averaged weights on at most six training and six held-out shapes of each class, at
five times from data (0) to noise (1000): a high loss at late times means that the class lacks form, at early times
detail. Second, the shapes in the run's `samples` against real ones of all splits: roughness; stray points per shape, as
`benchmarks.quality.naming` counts them; and the Chamfer distance x1000 between two shapes of a class, which is small
if all drawn shapes are alike.
"""

from collections.abc import Sequence
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from benchmarks import options_of
from benchmarks.quality.naming import drawn, stray
from ditmoe.conditioning import Condition
from ditmoe.config.restore import Restored, restore
from modalities.pointcloud.metrics.surface_quality import roughness, tree_of

TIMES = (100, 300, 500, 700, 900)
SHAPES, PAIRS = 6, 60
"""Of a class: shapes whose loss is measured, and pairs whose distance is."""

Clouds = Sequence[Float[np.ndarray, "N 3"]]


def losses(restored: Restored, clouds: Clouds, label: int, generator: torch.Generator) -> list[float]:
    """Mean square of the error at each time; few shapes are each taken with several noises."""
    kept = np.stack(clouds[:SHAPES])
    x0 = restored.modality.encode(kept).repeat(SHAPES // len(kept), 1, 1)  # type: ignore[attr-defined]
    asked = Condition({"label": torch.full((len(x0),), label)}, torch.zeros(len(x0), dtype=torch.bool))
    found = []
    for time in TIMES:
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.full((len(x0),), float(time))
        across = t.view(-1, 1, 1)
        with torch.no_grad():
            output = restored.model(restored.process.corrupt(x0, noise, across), t, asked)[0]
        found.append(float(((output - restored.process.target(x0, noise, across)) ** 2).mean()))
    return found


def apart(clouds: Clouds) -> float:
    """Mean Chamfer distance x1000 of the first pairs; not a number for one cloud."""
    trees = [tree_of(cloud) for cloud in clouds]
    pairs = islice(combinations(range(len(clouds)), 2), PAIRS)
    found = [
        np.mean(trees[i].query(clouds[j])[0] ** 2) + np.mean(trees[j].query(clouds[i])[0] ** 2)
        for i, j in pairs
    ]
    return float(1000 * np.mean(found)) if found else float("nan")


def surfaces(clouds: Clouds) -> list[str]:
    """Roughness, stray points and distance of the shapes of a class."""
    return [
        f"{np.mean([roughness(cloud) for cloud in clouds]):.2f}",
        f"{np.mean(stray([('', cloud) for cloud in clouds])):.1f}",
        f"{apart(clouds):.1f}",
    ]


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    restored = restore(options.run, trusted=True)
    classes = restored.modality.classes
    real: dict[str, list[list[np.ndarray]]] = {
        split: [[] for _ in classes] for split in ("train", "held-out")
    }
    for split, into in (("train", "train"), ("val", "held-out"), ("test", "held-out")):
        samples = restored.modality.reference(split)  # type: ignore[attr-defined]
        for cloud, label in zip(samples.data, samples.labels, strict=True):
            real[into][label].append(cloud[:, :3])
    generator = torch.Generator().manual_seed(0)
    times = " | ".join(map(str, TIMES))
    print(f"| class | shapes | {times} | held-out | {times} |\n|---|--:|{'--:|' * 11}")
    for label, name in enumerate(classes):
        cells = [name]
        for found in (real["train"][label], real["held-out"][label]):
            values = losses(restored, found, label, generator) if found else []
            cells += [str(len(found)), *([f"{value:.2f}" for value in values] or [""] * len(TIMES))]
        print(f"| {' | '.join(cells)} |", flush=True)
    print("\n| class | roughness | real | stray | real | apart | real |\n|---|--:|--:|--:|--:|--:|--:|")
    shapes = drawn(options.run / "samples")
    for label, name in enumerate(classes):
        own = [points for of, points in shapes if of == name]
        if own:
            beside = surfaces(real["train"][label] + real["held-out"][label])
            cells = [cell for pair in zip(surfaces(own), beside, strict=True) for cell in pair]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
