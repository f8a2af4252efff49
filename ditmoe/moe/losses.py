"""Losses that keep experts balanced and distinct."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.distributed import ALONE, Ranks


def balance_loss(
    counts: Int[Tensor, " E"], scores: Float[Tensor, "T E"], tokens: float | Tensor | None = None
) -> Float[Tensor, ""]:
    """Expert-level balance loss of a layer, E sum_i f_i P_i.

    f_i is the fraction of assignments that went to expert i (no gradient), P_i its mean score over the tokens, where
    scores are distributions (DiT-MoE, arXiv 2407.11633, eq. 6; Switch, arXiv 2101.03961, eq. 4).
    1 when balanced, up to E when one expert takes all. It is returned, not injected into `backward`, so that its
    gradient follows the loss scale like that of any other loss.

    Args:
        counts: of the whole batch, while scores are those of the local tokens.
        tokens: denominator of the mean P; for a batch distributed over ranks, `Ranks.share` of its tokens.
    """
    mean = scores.float().sum(dim=0) / (len(scores) if tokens is None else tokens)
    return len(counts) * (counts / counts.sum().clamp_min(1) * mean).sum()


def z_loss(logits: Float[Tensor, "T E"], tokens: float | Tensor | None = None) -> Float[Tensor, ""]:
    """Keeps logits small: mean over the tokens of logsumexp(logits)² (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return logits.logsumexp(dim=-1).square().sum() / (len(logits) if tokens is None else tokens)


def similarity_loss(
    probabilities: Float[Tensor, "T E"], chosen: Float[Tensor, "T E"], ranks: Ranks = ALONE, tokens: float = 0
) -> Float[Tensor, ""]:
    """Router similarity loss of Expert Race (arXiv 2503.16057): experts should prefer different tokens.

        P' = P^T P,  M' = M^T M,    L = (1/T) sum_ij W_ij P'_ij,
        W_ii = E M'_ii / sum_k M'_kk,    W_ij = (E² - E) M'_ij / sum_{k != l} M'_kl     (no gradient)

    with the softmax P of the logits and the mask M of the assignments. The diagonal balances; the rest penalises
    pairs that are chosen together. 1 where all scores are even.
    """
    num_experts = probabilities.shape[1]
    with torch.autocast(probabilities.device.type, enabled=False):  # the counts exceed half precision
        together, alike = ranks.total(chosen.T @ chosen), probabilities.T @ probabilities
    alone = together.diagonal()
    pairs = together - torch.diag(alone)
    weight = torch.diag(num_experts * alone / alone.sum().clamp_min(1))
    weight = weight + (num_experts**2 - num_experts) * pairs / pairs.sum().clamp_min(1)
    return (weight * alike).sum() / (tokens or len(probabilities))


def contrastive_loss(
    prototypes: Float[Tensor, "E D"],
    x: Float[Tensor, "T D"],
    chosen: Float[Tensor, "T E"],
    temperature: float,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """Routing contrastive loss of ProMoE (arXiv 2510.24711): pulls each prototype towards the mean of its own tokens.

        M_ij = cos(p_i, m_j) / temperature,   L = mean over i of -log softmax_j(M_ij)_i,   i and j with tokens

    Zero if fewer than two have tokens. The mean is over the tokens of all ranks; its gradient is that of the local
    tokens times the number of ranks, over which gradients are averaged.
    """
    with torch.autocast(x.device.type, enabled=False):
        counts, own = ranks.total(chosen.sum(dim=0)), chosen.T @ x
        sums = own if ranks.size == 1 else ranks.total(own) + ranks.size * (own - own.detach())
        means = F.normalize(sums / counts.clamp_min(1)[:, None], dim=-1)
        similar = F.linear(F.normalize(prototypes, dim=-1), means) / temperature
    used = counts > 0
    each = -similar.masked_fill(~used, -1e9).log_softmax(dim=-1).diagonal()
    return each.masked_fill(~used, 0.0).sum() / used.sum().clamp_min(1)
