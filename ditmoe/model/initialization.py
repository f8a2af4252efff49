"""Initialisation of all weights, by kind of module, as in DiT (arXiv 2212.09748, 3.2): blocks start as the identity.

    linear layers           Xavier, biases zero             experts    the same, each on its own
    routers                 uniform within 1 / sqrt(fan in), vectors zero
    normalisations          one and zero
    timestep, embeddings, tokens    normal, standard deviation 0.02
    modulations, the last layer     zero: gates are closed, and the prediction is zero

A class whose own layers start differently has a method `initialize`, called after these rules have been applied to all
modules within it: routers, experts, a router's branch, cross-attention, a conditioning, a modality's tokens.
Whatever no rule and no class covers keeps the constructor's values. Random numbers are drawn in module order, those of
standard deviation 0.02 last.

muP changes only the standard deviations (`rescale`, see `ditmoe/model/mup.py`).
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
    """Initialise all weights of a model."""
    initialize_layers(model)
    for token in model.parameters(recurse=False):
        initialize_token(token)
    if not model.tokens.initialize():  # else the tokens' own head is the zero layer
        nn.init.zeros_(model.final.linear.weight)


@torch.no_grad()
def initialize_layers(*parents: nn.Module) -> None:
    """Initialise all layers within these modules, one module after the other."""
    for parent in parents:
        for module in parent.modules():
            _by_kind(module)
        for module in _inner_first(parent):
            _after(module)


@torch.no_grad()
def initialize_token(token: nn.Parameter) -> None:
    """Initialise a learnt token."""
    nn.init.normal_(token, std=DEVIATION)


@torch.no_grad()
def rescale(model: nn.Module, base: nn.Module, factors: Mapping[str, float]) -> None:
    """Rescale weights to the standard deviation that they have in a smaller model, times a factor; zeros stay zero.

    Standard deviations are measured, whatever the distribution, over the matching weights of all layers together: to
    1 % for 5,000 numbers.

    Args:
        base: the smaller model, with the same parameter names.
        factors: by the name of each parameter to rescale.
    """
    own, small = (_deviations(m) for m in (model, base))
    for name, value in model.named_parameters():
        if name in factors and (is_now := own[_alike(name)]):
            value.mul_(factors[name] * small[_alike(name)] / is_now)


def _deviations(model: nn.Module) -> dict[str, float]:
    """The root mean square over all weights that differ only in their layer."""
    sums: dict[str, tuple[float, int]] = {}
    for name, value in model.named_parameters():
        total, count = sums.get(_alike(name), (0.0, 0))
        sums[_alike(name)] = total + value.double().square().sum().item(), count + value.numel()
    return {name: math.sqrt(total / count) if count else 0.0 for name, (total, count) in sums.items()}


def _alike(name: str) -> str:
    """A parameter's name without its layer index."""
    return re.sub(r"\d+", "#", name)


def _by_kind(module: nn.Module) -> None:
    """Apply the rule of a module's kind."""
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
    """Xavier matrices, gate and up each on its own; or normal ones, if a standard deviation is given."""
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
    """Apply the exceptions, and a class's own `initialize`."""
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
