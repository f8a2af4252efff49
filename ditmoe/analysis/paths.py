"""Paths of tokens through the layers: which expert follows which, beyond what time and place explain.

If a token has several experts, each pair of experts in consecutive layers counts by the product of their shares. The
null distribution permutes whole samples in the later layer, at the same time and cell: the mutual information that
remains is due to time and place, which both layers know.
"""

import numpy as np
from jaxtyping import Float

from ditmoe.analysis.record import Record
from ditmoe.analysis.statistics import Dependence, dependence


def shares(record: Record) -> Float[np.ndarray, "T L E"]:
    """The share of each expert in the assignments of each token; zeros for a token without experts."""
    chosen = record.chosen.astype(np.float64)
    total = chosen.sum(-1, keepdims=True)
    return chosen / np.where(total > 0, total, 1)


def transitions(record: Record, permutations: int, seed: int) -> tuple[np.ndarray, Dependence | None]:
    """Numbers of tokens from each expert to each of the next layer, (L - 1, E, E), and the dependence between the two.

    The dependence is None for a single layer, and if samples differ in their grids and so cannot be permuted.
    """
    of = shares(record)
    size, bins = record.loss.shape
    layers, experts = of.shape[1:]
    if layers < 2:
        return np.zeros((0, experts, experts)), None
    pairs = np.stack([of[:, i, :, None] * of[:, i + 1, None, :] for i in range(layers - 1)], 1)
    tables = np.stack([pairs[record.sample == s].sum(0) for s in range(size)])
    if not record.same_grid:
        return tables.sum(0), None
    cell = np.ravel_multi_index(tuple(record.cell.T), tuple(record.grid[0]))
    cells = int(record.grid[0].prod())
    row_of = np.full((size, bins, cells), -1)
    row_of[record.sample, record.time, cell] = np.arange(len(cell))

    def permuted(rng: np.random.Generator) -> np.ndarray:
        other = row_of[rng.permutation(size)[record.sample], record.time, cell]
        here = other >= 0  # in point clouds a cell may be empty in the other sample
        first, second = of[here], of[other[here]]
        return np.stack([first[:, i].T @ second[:, i + 1] for i in range(layers - 1)])

    return tables.sum(0), dependence(tables, permuted, permutations, np.random.default_rng([seed, 3]))


def told(table: Float[np.ndarray, "M E E"], most: int = 5) -> list[list[dict[str, float]]]:
    """The most frequent expert pairs of consecutive layers: share of the tokens, and ratio to chance (`lift`)."""
    found = []
    for each in table:
        joint = each / max(each.sum(), 1e-300)
        chance = joint.sum(1)[:, None] * joint.sum(0)
        best = np.argsort(-joint, axis=None)[:most]
        pairs = [(int(i) // each.shape[1], int(i) % each.shape[1]) for i in best]
        found.append(
            [
                {"from": a, "to": b, "share": float(joint[a, b]), "lift": float(joint[a, b] / chance[a, b])}
                for a, b in pairs
                if joint[a, b] > 0
            ]
        )
    return found
