"""Health of a mixture: dead experts, indecisive routers, similar experts."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.distributed import local, whole
from ditmoe.moe import Routing

EXPERTS_TAKE_ALL = 1.25
"""A layer has collapsed when its effective experts are at most this many times the experts per token."""
FEWEST = 32
"""Assignments per expert below which shares are not meaningful."""


def tally(routings: Sequence[Routing], device: torch.device) -> Float[Tensor, "L columns"]:
    """Assignments per layer and expert of a pass, then the number dropped."""
    rows = [
        F.pad(r.counts, (0, 1)) if r.dropped is None else torch.cat([r.counts, r.dropped[None]])
        for r in routings
    ]
    return torch.stack(rows).double() if rows else torch.zeros(0, 1, dtype=torch.float64, device=device)


@torch.no_grad()
def health(
    counts: Float[Tensor, " E"], routing: Routing, router: nn.Module, experts: nn.Module
) -> dict[str, float]:
    """Statistics of one layer.

        dead                experts without any assignment
        effective           exp of the entropy of the load: E when it is even, 1 when one expert has all
        entropy             of a token's scores, mean over the tokens, over log E: 1 when all scores are equal
        router_similarity   largest cosine between two rows of the router's matrix
        expert_similarity   mean cosine between the weights of two experts; 1 after upcycling, 0 at random
                            initialisation; not under expert parallelism

    Args:
        counts: assignments per expert since the last record.
        routing: the latest.
    """
    num = len(counts)
    load = (counts / counts.sum().clamp_min(1)).double()
    scores = routing.scores.double().clamp_min(0)
    scores = scores / scores.sum(-1, keepdim=True).clamp_min(1e-20)
    numbers = {
        "dead": (counts == 0).sum(),
        "effective": torch.special.entr(load).sum().exp(),
        "entropy": torch.special.entr(scores).sum(-1).mean() / max(math.log(num), 1e-20),
    }
    rows = whole(getattr(router, "weight", None))
    if num > 1 and isinstance(rows, Tensor) and rows.ndim == 2 and len(rows) == num:
        numbers["router_similarity"] = _cosines(rows).max()
    matrices = [getattr(experts, name, None) for name in ("up", "down")]
    stacked = [
        m for m in matrices if isinstance(m, Tensor) and m is local(m) and m.ndim == 3 and len(m) == num
    ]
    if num > 1 and stacked:
        numbers["expert_similarity"] = torch.stack([_cosines(m.flatten(1)).mean() for m in stacked]).mean()
    values = torch.stack([value.double() for value in numbers.values()]).tolist()
    return dict(zip(numbers, values, strict=True))


def collapsed(numbers: dict[str, float], counts: Float[Tensor, " E"], active: float) -> bool:
    """Whether few more experts than a token uses do all the work, or most do none."""
    num = len(counts)
    if num < 3 or num <= 2 * active or float(counts.sum()) < FEWEST * num:
        return False
    return numbers["effective"] <= EXPERTS_TAKE_ALL * max(active, 1) or numbers["dead"] > num / 2


def _cosines(rows: Float[Tensor, "E n"]) -> Float[Tensor, " pairs"]:
    """The cosine of each pair of rows."""
    rows = F.normalize(rows.float(), dim=1)
    first, second = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
    return (rows @ rows.T)[first, second]
