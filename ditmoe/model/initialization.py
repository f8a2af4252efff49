"""Initial values of all weights, by kind of module, as DiT has them (arXiv 2212.09748, 3.2): blocks are the identity.

    linear layers           Xavier, biases zero             experts    the same, as if each stood alone
    routers                 uniform within 1 / sqrt(fan in), vectors zero
    normalisations          one and zero
    timestep, embeddings, tokens    normal, deviation 0.02
    modulations, the last layer     zero: gates are closed, and nothing is predicted

A class whose own layers are to start otherwise has a method `initialize`, which is called when these rules have been
applied to all within it: routers, experts, a router's branch, cross-attention, a conditioning, a modality's tokens.
What no rule and no class names keeps what its constructor made. Random numbers are drawn in the order of the modules,
those of deviation 0.02 last.

Those of muP are these with other deviations (`rescale`): `ditmoe/model/mup.py` says which.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ditmoe.modality import Tokens
from ditmoe.model.parameters import NORMS
from ditmoe.moe import Experts, Router
from ditmoe.nn import Modulation, TimestepEmbedding

if TYPE_CHECKING:
    from ditmoe.model.backbone import DiTMoE

DEVIATION = 0.02


@torch.no_grad()
def initialize(model: "DiTMoE") -> None:
    """All weights of a model."""
    initialize_layers(model)
    for token in model.parameters(recurse=False):
        initialize_token(token)
    if not model.tokens.initialize():  # else the zero is in the head that follows
        nn.init.zeros_(model.final.linear.weight)


@torch.no_grad()
def initialize_layers(*parents: nn.Module) -> None:
    """All layers within these modules, one module after the other."""
    for parent in parents:
        for module in parent.modules():
            _by_kind(module)
        for module in _inner_first(parent):
            _after(module)


@torch.no_grad()
def initialize_token(token: nn.Parameter) -> None:
    """A vector that stands for a token."""
    nn.init.normal_(token, std=DEVIATION)


@torch.no_grad()
def rescale(model: nn.Module, base: nn.Module, factors: Mapping[str, float]) -> None:
    """Give weights of a model the deviation that they have in a smaller one, times a factor; zeros stay zero.

    Deviations are measured, whatever drew the values, on the weights of one shape of all layers together: to 1 % where
    these are 5,000 numbers.

    Args:
        base: the same model, whose parameters have the same names.
        factors: by name, of those that are to change.
    """
    own, small = (_deviations(m) for m in (model, base))
    for name, value in model.named_parameters():
        if name in factors and (is_now := own[_alike(name)]):
            value.mul_(factors[name] * small[_alike(name)] / is_now)


def _deviations(model: nn.Module) -> dict[str, float]:
    """The root mean square of all weights that are alike."""
    sums: dict[str, tuple[float, int]] = {}
    for name, value in model.named_parameters():
        total, count = sums.get(_alike(name), (0.0, 0))
        sums[_alike(name)] = total + value.double().square().sum().item(), count + value.numel()
    return {name: math.sqrt(total / count) if count else 0.0 for name, (total, count) in sums.items()}


def _alike(name: str) -> str:
    """A parameter's name without the number of its layer."""
    return re.sub(r"\d+", "#", name)


def _by_kind(module: nn.Module) -> None:
    """What modules of one kind have in common."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, NORMS):
        module.reset_parameters()
    elif isinstance(module, Experts):
        _experts(module)
        module.initialize()
    elif isinstance(module, Router):
        for weight in module.parameters(recurse=False):
            bound = weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.0
            if bound:
                nn.init.uniform_(weight, -bound, bound)
            else:
                nn.init.zeros_(weight)
        module.initialize()


def _experts(experts: Experts) -> None:
    """Xavier matrices, gate and up each on its own; or normal ones, where a deviation is given."""
    for matrix, halves in ((experts.up, 2 if experts.activation == "swiglu" else 1), (experts.down, 1)):
        bound = math.sqrt(6 / (matrix.shape[1] // halves + matrix.shape[2]))
        if experts.std is None:
            nn.init.uniform_(matrix, -bound, bound)
        else:
            nn.init.normal_(matrix, std=experts.std)
    for bias in (experts.up_bias, experts.down_bias):
        if bias is not None:
            nn.init.zeros_(bias)


def _after(module: nn.Module) -> None:
    """What differs from that, and what a class says of its own."""
    if isinstance(module, Modulation):
        nn.init.zeros_(module.linear.weight)
    elif isinstance(module, TimestepEmbedding):
        for layer in (module.first, module.second):
            nn.init.normal_(layer.weight, std=DEVIATION)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=DEVIATION)
    elif not isinstance(module, Experts | Router | Tokens):
        own: Any = getattr(module, "initialize", None)
        if own is not None:
            own()


def _inner_first(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from _inner_first(child)
    yield module
