"""Similarity of the experts of a layer: of their weights, and of their outputs for the same tokens.

All experts of a layer receive the same tokens with weight one, whatever the router chose. Outputs are compared by
cosine, token by token, and by linear CKA (arXiv 1905.00414), which is invariant to rotations, with the unbiased
estimator of HSIC (Song et al., J. Mach. Learn. Res. 13, 2012). Outputs are similar already because they are functions
of the same tokens. The baseline for this is the CKA of experts whose matrices have shuffled entries.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ditmoe.analysis.probe import Probe, shown
from ditmoe.diffusion import Process, torch_generator
from ditmoe.model import DiTMoE
from ditmoe.moe import Context, Experts, MoE, Routing

MOST_TOKENS, SAMPLES = 512, 4


@dataclass(frozen=True)
class Similarity:
    """Similarities of each pair of experts of each layer, (L, E, E); 1 on the diagonal.

    Attributes:
        weights: cosine of all weights.
        outputs, cka: cosine and CKA of the outputs.
        shuffled: CKA of the outputs of experts with shuffled weights.
        tokens: number of tokens per layer.
    """

    weights: Float[np.ndarray, "L E E"]
    outputs: Float[np.ndarray, "L E E"]
    cka: Float[np.ndarray, "L E E"]
    shuffled: Float[np.ndarray, "L E E"]
    tokens: int

    def told(self) -> dict[str, object]:
        """Mean and range over the pairs of each layer, for `analysis.json`."""
        found: dict[str, object] = {"tokens": self.tokens}
        for name in ("weights", "outputs", "cka", "shuffled"):
            each = getattr(self, name)
            pairs = each[:, ~np.eye(each.shape[1], dtype=bool)]
            if pairs.size:
                parts = {"mean": pairs.mean(1), "least": pairs.min(1), "most": pairs.max(1)}
                found[name] = {key: value.tolist() for key, value in parts.items()}
        return found


@torch.no_grad()
def similarity(model: DiTMoE, probe: Probe, process: Process, seed: int) -> Similarity:
    """Compare the experts on tokens of the first `SAMPLES` samples in each bin of time, at most `MOST_TOKENS`."""
    device = next(model.parameters()).device
    seen: list[list[tuple[Tensor, Context]]] = [[] for _ in model.mixtures]
    with _listening(model, seen):
        for one in shown(probe, process, SAMPLES, device):
            if one.rows[0] == 0:  # once for each bin
                model(one.x, one.t, one.asked)
    found = [_compared(mixture, parts, seed) for mixture, parts in zip(model.mixtures, seen, strict=True)]
    weights, outputs, cka_of, shuffled = (
        np.stack(each) for each in zip(*(f[:-1] for f in found), strict=True)
    )
    return Similarity(weights, outputs, cka_of, shuffled, found[0][-1])


@contextmanager
def _listening(model: DiTMoE, seen: list[list[tuple[Tensor, Context]]]) -> Iterator[None]:
    """Collect the inputs of the layers with experts."""

    def keep(to: list[tuple[Tensor, Context]]) -> object:
        return lambda module, inputs: to.append(inputs)

    pairs = zip(model.mixtures, seen, strict=True)
    handles = [mixture.register_forward_pre_hook(keep(to)) for mixture, to in pairs]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _compared(
    mixture: MoE, parts: list[tuple[Tensor, Context]], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    stacked = [
        p.flatten(1).float() for p in mixture.experts.parameters() if len(p) == len(mixture.experts.up)
    ]
    unit = F.normalize(torch.cat(stacked, 1), dim=1)
    total = sum(x.shape[0] * x.shape[1] for x, _ in parts)
    every = max(1, -(-total // MOST_TOKENS))
    other = shuffled(mixture.experts, seed)
    y, z = (
        torch.cat([answers(experts, x, context) for x, context in parts], dim=1)[:, ::every].float()
        for experts in (mixture.experts, other)
    )
    outputs = torch.einsum("etd,ftd->eft", *[F.normalize(y, dim=2)] * 2).mean(-1)
    return *(m.cpu().numpy() for m in (unit @ unit.T, outputs, cka(y), cka(z))), y.shape[1]  # type: ignore[return-value]


def answers(experts: Experts, x: Float[Tensor, "R N D"], context: Context) -> Float[Tensor, "E T D"]:
    """The output of each expert for every token."""
    number, tokens = len(experts.up), x.shape[0] * x.shape[1]
    token = torch.arange(tokens, device=x.device).repeat(number)
    expert = torch.arange(number, device=x.device).repeat_interleave(tokens)
    scores = torch.zeros(tokens, number, device=x.device)
    routing = Routing(token, expert, torch.ones(len(token), device=x.device), scores)
    rows = routing.dispatch(x, context.layout)
    return experts(rows, context.c).unflatten(0, (number, tokens))


def shuffled(experts: Experts, seed: int) -> Experts:
    """A copy with the entries of each expert's matrices in random order."""
    other = copy.deepcopy(experts)
    generator = torch_generator("shuffled", seed)
    for parameter in other.parameters():
        each = [part.flatten() for part in parameter]
        mixed = [part[torch.randperm(len(part), generator=generator).to(part.device)] for part in each]
        parameter.copy_(torch.stack(mixed).view_as(parameter))
    return other


def cka(y: Float[Tensor, "E T D"]) -> Float[Tensor, "E E"]:
    """Linear CKA of each pair; NaN for fewer than four tokens."""
    number = y.shape[1]
    if number < 4:
        return torch.full((len(y), len(y)), torch.nan)
    kernels = (y @ y.mT).double()
    kernels.diagonal(dim1=1, dim2=2).zero_()
    sums, total = kernels.sum(2), kernels.sum((1, 2))
    hsic = kernels.flatten(1) @ kernels.flatten(1).T
    hsic = hsic + total[:, None] * total / ((number - 1) * (number - 2)) - 2 / (number - 2) * sums @ sums.T
    own = hsic.diagonal().clamp_min(1e-300).sqrt()
    return hsic / own[:, None] / own
