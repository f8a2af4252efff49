"""Parameters of a model by name and kind, which is derived from the module that holds each."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ditmoe.modality import Tokens
from ditmoe.moe import Experts, Router

KINDS = {
    "matrix": "whatever maps from one axis to another: weights of linear layers, convolutions, routers, experts",
    "bias": "vectors that are added, also those of experts and routers",
    "norm": "scales and shifts of normalisations, and other gains",
    "embedding": "tables: a vector for each class",
    "token": "vectors that stand for a token",
    "router": "all within routers",
    "expert": "all within routed experts",
    "head": "all that a modality brings",
}
"""Kinds of parameters: exactly one of the first five, and those of the last three that contain its module."""
STANDS_IN = {"router": Router, "expert": Experts, "head": Tokens}
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
CLEAR = (nn.Linear, _ConvNd, nn.Embedding, *NORMS, Experts, Router)
"""Modules whose multi-axis parameters are known to be matrices or tables."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a model with its kinds.

    Attributes:
        fan_in: the axis that a matrix sums over: the last one, except for convolutions.
        sure: whether its kind follows from its module's type or `parameter_kinds`, not merely from its axes.
    """

    name: str
    value: nn.Parameter
    kinds: frozenset[str]
    fan_in: int = -1
    sure: bool = True

    def matches(self, pattern: str) -> bool:
        """Whether a pattern is one of its kinds or matches its name; * matches anything, including dots."""
        return pattern in self.kinds or fnmatchcase(self.name, pattern)


def parameters_of(model: nn.Module) -> Iterator[Parameter]:
    """All parameters of a model, in order, with their kinds."""
    known: dict[str, tuple[frozenset[str], int, bool]] = {}

    def walk(module: nn.Module, path: str, around: frozenset[str]) -> None:
        around = around | {kind for kind, held in STANDS_IN.items() if isinstance(module, held)}
        for name, value in module.named_parameters(recurse=False):
            sure = name in getattr(module, "parameter_kinds", {}) or isinstance(module, CLEAR)
            known[path + name] = around | {_form(module, name, value)}, _fan_in(module), sure
        for name, child in module.named_children():
            walk(child, f"{path}{name}.", around)

    walk(model, "", frozenset())
    for name, value in model.named_parameters():
        yield Parameter(name, value, *known[name])


def _form(module: nn.Module, name: str, value: nn.Parameter) -> str:
    """A parameter's kind within its module, which may declare it in `parameter_kinds`, a map from names to kinds."""
    if declared := getattr(module, "parameter_kinds", {}).get(name):
        return declared
    if isinstance(module, NORMS):
        return "norm"
    if isinstance(module, nn.Embedding):
        return "embedding"
    stacked = 1 if isinstance(module, Experts) else 0
    return "matrix" if value.ndim - stacked > 1 else "bias"


def _fan_in(module: nn.Module) -> int:
    if isinstance(module, _ConvTransposeNd):
        return 0
    return 1 if isinstance(module, _ConvNd) else -1
