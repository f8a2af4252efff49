"""BASE layers: the balanced assignment of tokens to experts with the highest total score.

Balanced within each sample, in training and in sampling, so that samples do not influence each other.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.moe.token_choice import TokenChoice
from ditmoe.nn import Layout


class Base(TokenChoice):
    """Balanced assignment with the highest total score (BASE layers, arXiv 2103.16716), repeated K times.

        a = argmax sum_t (W x)_{t, a_t}   where no expert gets more than ceil(N / E) tokens of a sample,
        w = sigmoid(W x)_{t, a_t}

    No round may repeat a pair of an earlier one, so that K rounds give K different experts; no expert gets more than
    K ceil(N / E) tokens. Solved exactly by SciPy on the host, which synchronises with a GPU in every layer.
    """

    top_k_in_sampling = within_timestep = True

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, balance: float = 0.0) -> None:
        super().__init__(hidden_size, num_experts, top_k, score="sigmoid", balance=balance)
        if 2 * (top_k - 1) > num_experts:
            raise ValueError(
                f"top_k must not be above num_experts / 2 + 1 = {num_experts // 2 + 1}, or rounds may find no free "
                f"pair, got {top_k}"
            )

    @torch.no_grad()
    def choose(
        self, logits: Float[Tensor, "T E"], scores: Float[Tensor, "T E"], layout: Layout
    ) -> Int[Tensor, "T K"]:
        if logits.is_meta:  # no values
            return super().choose(logits, scores, layout)
        samples = [sample for block in layout.blocks(logits.double().cpu()) for sample in block.numpy()]
        chosen = np.concatenate([_rounds(sample, self.top_k) for sample in samples])
        return torch.from_numpy(chosen).to(logits.device)


def _rounds(values: np.ndarray, top_k: int) -> np.ndarray:
    """(N, K) experts of one sample, from its (N, E) logits."""
    from scipy.optimize import linear_sum_assignment

    num_tokens, num_experts = values.shape
    places = np.repeat(np.arange(num_experts), math.ceil(num_tokens / num_experts))
    forbidden = values.min() - num_tokens * (np.ptp(values) + 1)  # costs more than any assignment without it
    values, rounds = values.copy(), []
    for _ in range(top_k):
        taken = places[linear_sum_assignment(values[:, places], maximize=True)[1]]
        values[np.arange(num_tokens), taken] = forbidden
        rounds.append(taken)
    return np.stack(rounds, axis=1)
