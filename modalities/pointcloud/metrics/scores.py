"""Scores of a generated set from distance matrices, independent of the distance."""

import numpy as np
from jaxtyping import Float, Int


def mmd_cov(M_rs: Float[np.ndarray, "R S"]) -> tuple[float, float]:
    """Minimum matching distance and coverage.

    MMD = (1/R) Σ_r min_s d(r, s), in units of the distance; COV = |{argmin_r d(r, s) : s}| / R in [0, 1]
    (Achlioptas et al., arXiv 1707.02392; PointFlow, arXiv 1906.12320, section 5.1). Rows are the reference:
    for the transposed matrix both mean something else.
    """
    return float(M_rs.min(axis=1).mean()), len(np.unique(M_rs.argmin(axis=0))) / len(M_rs)


def one_nna(
    M_rr: Float[np.ndarray, "R R"], M_rs: Float[np.ndarray, "R S"], M_ss: Float[np.ndarray, "S S"]
) -> tuple[float, float, float]:
    """Accuracy of a nearest-neighbour classifier in telling real shapes from generated ones.

    Each shape of both sets is classified by its nearest other shape (leave-one-out over the full matrices,
    Lopez-Paz and Oquab, arXiv 1610.06545; PointFlow, arXiv 1906.12320, section 5.1). 0.5 is ideal, 1 means that
    the sets are separate, and 0 that one copies the other. Ties count fractionally, so the order of sets and
    shapes does not matter.

    Returns:
        Overall accuracy, that of the real shapes (acc_t) and of the generated ones (acc_f); in [0, 1].
    """
    num_ref, num_sample = M_rs.shape
    M = np.block([[M_rr, M_rs], [M_rs.T, M_ss]]).astype(np.float64)
    np.fill_diagonal(M, np.inf)
    nearest = np.equal(M, M.min(axis=0))
    real = nearest[:num_ref].sum(axis=0) / nearest.sum(axis=0)
    right_ref, right_sample = real[:num_ref], 1 - real[num_ref:]
    overall = (right_ref.sum() + right_sample.sum()) / (num_ref + num_sample)
    return float(overall), float(right_ref.mean()), float(right_sample.mean())


def class_scores(
    M_rs: Float[np.ndarray, "R S"],
    reference: Int[np.ndarray, " R"],
    generated: Int[np.ndarray, " S"] | None = None,
) -> dict[str, float]:
    """Whether the generated set has the real classes, in the same proportions, and consistent with its labels.

    A generated shape is assigned the class c(s) of its nearest real shape, regardless of its own label. With the
    classes of the reference, their shares p, and the shares q of c(s) over s:

        classes/coverage    fraction of the classes that are c(s) for some s
        classes/distance    total variation Σ_c |p_c - q_c| / 2, in [0, 1]; not 0 for real shapes either, as the
                            nearest shape is not always of the same class: see the oracle
        classes/agreement   with labels of the generated set, the fraction of s whose label is c(s)
    """
    found = reference[M_rs.argmin(axis=0)]
    names = np.unique(reference)
    p, q = ((labels[:, None] == names).mean(axis=0) for labels in (reference, found))
    scores = {"classes/coverage": float((q > 0).mean()), "classes/distance": float(abs(p - q).sum() / 2)}
    if generated is not None:
        scores["classes/agreement"] = float((found == generated).mean())
    return scores
