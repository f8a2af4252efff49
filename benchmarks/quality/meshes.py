"""From a shape to points and back to a surface: how much of the result is right, and how much is missing.

    python -m benchmarks.quality.meshes [--shapes 40] [--seeds 3] [--points 2048 8192] [--meshes FOLDER] [--out FOLDER]

- Six pieces of furniture made of boxes and rods, whose surface is known exactly: 2,048 and 8,192 points become a mesh,
  and 40,000 points of the mesh are compared with 60,000 other points of the surface.
- Held-out real furniture of the built-in set, with 4,096 points each: 2,048 become a mesh, and 2,048 points of the mesh
  are compared with the other 2,048.
- With `--meshes`, files of a folder (such as `benchmarks.quality.sweet_home` writes), as many of each class: points of
  the mesh become a mesh again, and 40,000 points of it are compared with 60,000 other points of the original, of which
  what lies hidden within counts as well.

Precision, recall and F at 1 % of the diagonal of the bounding box (Tatarchenko et al., arXiv 1905.03678): means over
shapes with 95 % intervals. Further rows: the oracle, which has as many points of the true surface itself as are taken
of the mesh; and the same Poisson reconstruction with normals oriented by a minimum spanning tree (Hoppe et al., 1992).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial import cKDTree
from scipy.special import stdtrit
from tqdm import tqdm

from benchmarks import options_of
from modalities.pointcloud.data import Clouds
from modalities.pointcloud.data.formats import read_surface, sample_surface
from modalities.pointcloud.surface import Mesh, reconstruct
from modalities.pointcloud.viz.raster import render_mesh
from modalities.pointcloud.viz.render import render
from modalities.shared import lay_out, save_png

TRUE, SHOWN = 60_000, 40_000
Scores = tuple[float, float, float]
Method = Callable[[np.ndarray], Mesh]


@dataclass(frozen=True)
class Box:
    """Between two corners."""

    low: Sequence[float]
    high: Sequence[float]

    @property
    def area(self) -> float:
        a, b, c = np.subtract(self.high, self.low)
        return 2 * (a * b + b * c + c * a)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Points of its surface."""
        edges = np.subtract(self.high, self.low)
        side = edges.prod() / edges
        points = self.low + rng.random((count, 3)) * edges
        axis = rng.choice(3, count, p=side / side.sum())
        ends = np.stack([self.low, self.high])
        points[np.arange(count), axis] = ends[rng.integers(2, size=count), axis]
        return points

    def hides(self, points: np.ndarray) -> np.ndarray:
        """Which points lie within."""
        return ((points > np.add(self.low, 1e-9)) & (points < np.subtract(self.high, 1e-9))).all(axis=1)


@dataclass(frozen=True)
class Rod:
    """A cylinder from one end to the other."""

    start: Sequence[float]
    end: Sequence[float]
    radius: float

    @property
    def length(self) -> float:
        return float(np.linalg.norm(np.subtract(self.end, self.start)))

    @property
    def area(self) -> float:
        return 2 * np.pi * self.radius * (self.length + self.radius)

    @property
    def axis(self) -> np.ndarray:
        return np.subtract(self.end, self.start) / self.length

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Points of its surface."""
        across = np.linalg.svd(self.axis[None])[2][1:]
        cap = rng.random(count) < self.radius / (self.length + self.radius)
        far = self.radius * np.where(cap, np.sqrt(rng.random(count)), 1)
        turn = 2 * np.pi * rng.random(count)
        along = self.length * np.where(cap, rng.integers(2, size=count), rng.random(count))
        ring = np.stack([np.cos(turn), np.sin(turn)], axis=1) @ across
        return np.array(self.start) + along[:, None] * self.axis + far[:, None] * ring

    def hides(self, points: np.ndarray) -> np.ndarray:
        """Which points lie within."""
        away = points - self.start
        along = away @ self.axis
        far = np.linalg.norm(away - along[:, None] * self.axis, axis=1)
        return (along > 1e-9) & (along < self.length - 1e-9) & (far < self.radius - 1e-9)


Parts = list[Box | Rod]


def furniture() -> dict[str, Parts]:
    """Plates of 2 to 4 and legs of 2 to 6 hundredths of the size; with 2,048 points the next one is as far."""
    two = (-1, 1)
    table: Parts = [Box([-0.8, 0.7, -0.45], [0.8, 0.74, 0.45])]
    table += [Rod([0.74 * x, 0, 0.39 * z], [0.74 * x, 0.71, 0.39 * z], 0.025) for x in two for z in two]
    stool: Parts = [Rod([0, 0.6, 0], [0, 0.64, 0], 0.2)]
    stool += [Rod([0.17 * x, 0, 0.17 * z], [0.13 * x, 0.61, 0.13 * z], 0.015) for x in two for z in two]
    stool += [Rod([-0.15, 0.25, 0.15 * z], [0.15, 0.25, 0.15 * z], 0.01) for z in two]
    chair: Parts = [
        Box([-0.22, 0.42, -0.22], [0.22, 0.45, 0.22]),
        Box([-0.22, 0.9, -0.225], [0.22, 0.97, -0.185]),
    ]
    chair += [
        Box([x - 0.02, 0, z - 0.02], [x + 0.02, 0.43, z + 0.02]) for x in (-0.2, 0.2) for z in (-0.2, 0.2)
    ]
    chair += [Box([x - 0.015, 0.44, -0.22], [x + 0.015, 0.95, -0.19]) for x in (-0.2, -0.1, 0, 0.1, 0.2)]
    shelf: Parts = [Box([x - 0.01, 0, -0.15], [x + 0.01, 1.2, 0.15]) for x in (-0.39, 0.39)]
    shelf += [Box([-0.39, y, -0.15], [0.39, y + 0.02, 0.15]) for y in (0.02, 0.3, 0.6, 0.9, 1.18)]
    sofa: Parts = [Box([-0.9, 0.12, -0.4], [0.9, 0.4, 0.4]), Box([-0.9, 0.12, -0.4], [0.9, 0.8, -0.2])]
    sofa += [Box([-0.9, 0.12, -0.4], [-0.72, 0.58, 0.4]), Box([0.72, 0.12, -0.4], [0.9, 0.58, 0.4])]
    sofa += [Rod([0.8 * x, 0, 0.3 * z], [0.8 * x, 0.15, 0.3 * z], 0.03) for x in two for z in two]
    lamp: Parts = [Rod([0, 0, 0], [0, 0.03, 0], 0.16), Rod([0, 0.02, 0], [0, 1.3, 0], 0.012)]
    lamp += [Rod([0, 1.2, 0], [0, 1.5, 0], 0.2)]
    return {"table": table, "stool": stool, "chair": chair, "shelf": shelf, "sofa": sofa, "lamp": lamp}


def draw(parts: Parts, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points, evenly by area, of what is seen of the union of parts."""
    areas = np.array([part.area for part in parts])
    found: list[np.ndarray] = []
    while sum(map(len, found)) < count:
        numbers = rng.multinomial(count, areas / areas.sum())
        points = np.concatenate([part.draw(n, rng) for part, n in zip(parts, numbers, strict=True)])
        hidden = np.any([part.hides(points) for part in parts], axis=0)
        found.append(rng.permutation(points[~hidden]))
    return np.concatenate(found)[:count]


def hoppe(points: np.ndarray, neighbours: int = 12) -> np.ndarray:
    """Normals of planes through neighbours, signs handed along the minimum spanning tree of their angles."""
    nearest = cKDTree(points).query(points, neighbours)[1]
    around = points[nearest] - points[nearest].mean(axis=1, keepdims=True)
    normals = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))[1][:, :, 0]
    start, end = np.repeat(np.arange(len(points)), neighbours - 1), nearest[:, 1:].ravel()
    angle = 1 - np.abs((normals[start] * normals[end]).sum(axis=1)) + 1e-6
    graph = coo_matrix((angle, (start, end)), shape=(len(points),) * 2).tocsr()
    tree = minimum_spanning_tree(graph.maximum(graph.T))
    tree = tree + tree.T
    pieces = connected_components(tree, directed=False)[1]
    for piece in range(pieces.max() + 1):
        own = np.flatnonzero(pieces == piece)
        top = own[points[own, 1].argmax()]
        normals[top] *= 1 if normals[top, 1] >= 0 else -1
        order, before = breadth_first_order(tree, top, directed=False)
        for one in order[1:]:
            normals[one] *= 1 if normals[one] @ normals[before[one]] >= 0 else -1
    return normals


def precision_and_recall(surface: np.ndarray, true: np.ndarray) -> Scores:
    """Precision, recall and F-score of a surface against the true one, both as sampled points (arXiv 1905.03678).

    Precision is the fraction of the surface within 1 % of the diagonal of the true one's bounding box of the true one,
    recall that of the true one within it of the surface.
    """
    limit = 0.01 * float(np.linalg.norm(np.ptp(true, axis=0)))
    precision = float(np.mean(cKDTree(true).query(surface)[0] <= limit))
    recall = float(np.mean(cKDTree(surface).query(true)[0] <= limit))
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-300)


def scores(mesh: Mesh, true: np.ndarray, count: int) -> Scores:
    return precision_and_recall(
        sample_surface(mesh.vertices, mesh.faces, count, np.random.default_rng(1)), true
    )


def line(name: str, found: list[Scores], per: int = 1) -> str:
    """Means of the three with 95 % intervals over shapes; of `per` scores of one shape, their mean."""
    values = np.array(found).reshape(-1, per, 3).mean(axis=1)
    half = stdtrit(len(values) - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(len(values))
    means = [f"{m:.3f} ± {h:.3f}" for m, h in zip(values.mean(axis=0), half, strict=True)]
    return f"| {name} | {' | '.join(means)} |"


def files_of(folder: Path, most: int) -> list[Path]:
    """About `most` meshes, as many of each class, evenly through the sorted files of its subfolder."""
    classes = [sorted(found) for sub in sorted(folder.iterdir()) if (found := [*sub.glob("*.obj")])]
    if not classes:
        raise SystemExit(f"{folder} must hold a folder of OBJ files per class")
    each = -(-most // len(classes))
    return [files[at] for files in classes for at in sorted({n * len(files) // each for n in range(each)})]


def from_files(files: list[Path], counts: Sequence[int], methods: Mapping[str, Method]) -> Iterator[str]:
    """Lines of the table: each file's mesh to points and back, against the original."""
    for count in counts:
        found: dict[str, list[Scores]] = {name: [] for name in (*methods, "oracle")}
        closed = 0
        for path in tqdm(files, f"{count} points of meshes"):
            true, points = read_surface(path, TRUE, seed=1), read_surface(path, count, seed=0)
            for name, make in methods.items():
                mesh = make(points)
                found[name].append(scores(mesh, true, SHOWN))
                closed += name == "ours" and mesh.is_closed
            found["oracle"].append(precision_and_recall(read_surface(path, SHOWN, seed=2), true))
        yield from (line(f"{len(files)} original meshes, {count} points: {n}", of) for n, of in found.items())
        yield f"watertight: {closed} of ours"


def main() -> None:
    """The tables, and a sheet of the shapes with their meshes."""
    parser = options_of(__doc__)
    parser.add_argument("--shapes", type=int, default=40, help="of real furniture, val before test")
    parser.add_argument("--seeds", type=int, default=3, help="draws of each piece of boxes and rods")
    parser.add_argument("--points", type=int, nargs="+", default=[2048, 8192], help="of each piece")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--smoothing", type=int, default=1)
    parser.add_argument("--meshes", type=Path, help="a folder with a folder of OBJ files per class")
    parser.add_argument("--out", type=Path, help="where a sheet is drawn")
    options = parser.parse_args()
    how = {"resolution": options.resolution, "smoothing": options.smoothing}
    methods: dict[str, Method] = {
        "ours": lambda points: reconstruct(points, **how),
        "spanning tree": lambda points: reconstruct(points, hoppe(points), **how),
    }
    lines = ["| | precision | recall | F |", "|---|---|---|---|"]
    tiles: list[np.ndarray] = []
    labels: list[str] = []
    for count in options.points:
        found: dict[str, list[Scores]] = {name: [] for name in (*methods, "oracle")}
        for name, parts in tqdm(furniture().items(), f"{count} points"):
            for seed in range(options.seeds):
                rng = np.random.default_rng([seed, count])
                points, true = draw(parts, count, rng), draw(parts, TRUE, rng)
                for method, make in methods.items():
                    mesh = make(points)
                    found[method].append(scores(mesh, true, SHOWN))
                    if seed == 0 and count == 2048:
                        tiles += [render(points, 240)] if method == "ours" else []
                        tiles.append(render_mesh(mesh.vertices, mesh.faces, mesh.normals, 240))
                        labels += [f"{name}, points"] if method == "ours" else []
                        labels.append(f"{name}, {method} {found[method][-1][2]:.2f}")
                found["oracle"].append(precision_and_recall(draw(parts, SHOWN, rng), true))
        lines += [
            line(f"boxes and rods, {count} points: {name}", of, options.seeds) for name, of in found.items()
        ]
    data = Clouds()
    real = [cloud for split in ("val", "test") for cloud in data.reference(split, 4096).data][
        : options.shapes
    ]
    found = {name: [] for name in (*methods, "oracle")}
    for cloud in tqdm(real, "real furniture"):
        points, true = cloud[:2048].astype(np.float64), cloud[2048:].astype(np.float64)
        for method, make in methods.items():
            found[method].append(scores(make(points), true, 2048))
        found["oracle"].append(precision_and_recall(points, true))
    lines += [line(f"{len(real)} real pieces, 2048 points: {name}", of) for name, of in found.items()]
    print(*lines, sep="\n", flush=True)
    if options.meshes:
        for told in from_files(files_of(options.meshes, options.shapes), options.points, methods):
            print(told, flush=True)
    if options.out:
        print(save_png(options.out / "meshes.png", lay_out(tiles, labels, columns=6)))


if __name__ == "__main__":
    main()
