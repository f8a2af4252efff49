"""Parameters by name and kind: who learns how fast, and whose weights decay.

The one place that says so: what a new rule needs to know of a parameter (its name, what it is, what holds it, its
shape) is at hand in `ParameterGroups.group`. The learning rates of muP (arXiv 2203.03466), a factor for each matrix
from its fan in, belong there; the initial values that go with them into `ditmoe/model/initialization.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ditmoe.modality import Tokens
from ditmoe.moe import Experts, Router
from ditmoe.outside import check_number
from ditmoe.parallel import Mesh

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
"""What a parameter may be, of the first five one, of the last three where it stands in such a module."""
STANDS_IN = {"router": Router, "expert": Experts, "head": Tokens}
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Parameter:
    """One of a model's, and what is known of it."""

    name: str
    value: nn.Parameter
    kinds: frozenset[str]

    def matches(self, pattern: str) -> bool:
        """Whether a pattern is one of its kinds or fits its name; * stands for anything, dots as well."""
        return pattern in self.kinds or fnmatchcase(self.name, pattern)


@dataclass(frozen=True, kw_only=True)
class ParameterGroups:
    """The groups of an optimiser: section `parameters` of the configuration. By default all are one group.

    Args:
        rates: factors on the learning rate by kind (`KINDS`) or name, which may be a pattern such as `blocks.0.*`;
            factors of all that fit a parameter are multiplied. A factor of 0 keeps it as it is.
        no_decay: kinds or names without weight decay.

    Raises:
        ValueError: if a factor is no number of at least zero; later, if a word is no kind and fits no name.
    """

    rates: Mapping[str, Any] | None = None
    no_decay: Sequence[str] = ()

    def __post_init__(self) -> None:
        for pattern, factor in (self.rates or {}).items():
            check_number(f"parameters.rates.{pattern}", factor, 0)

    def optimizer(
        self, make: Callable[[Any], torch.optim.Optimizer], model: nn.Module, mesh: Mesh
    ) -> tuple[torch.optim.Optimizer, list[float]]:
        """An optimiser over the parameters of a model, and the learning rate of each of its groups.

        Raises:
            ValueError: if a word is no kind and fits no name, or the optimiser knows no weight decay to leave out.
        """
        every = list(parameters_of(model))
        for option, patterns in {"rates": self.rates or {}, "no_decay": self.no_decay}.items():
            for pattern in patterns:
                if pattern not in KINDS and not any(each.matches(pattern) for each in every):
                    raise ValueError(
                        f"parameters.{option} must name parameters of this model or kinds of them "
                        f"({', '.join(KINDS)}), none fits {pattern!r}"
                    )
        by_group: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for each in every:
            by_group.setdefault(self.group(each), []).append(each.value)
        groups, factors = [], []
        for (factor, decays), values in by_group.items():
            for part in mesh.groups(values):
                groups.append({"params": part} | ({} if decays else {"weight_decay": 0.0}))
                factors.append(factor)
        made = make(groups)
        if self.no_decay and "weight_decay" not in made.defaults:
            raise ValueError(
                f"parameters.no_decay must be empty for {type(made).__name__}, which has no weight_decay"
            )
        return made, [made.defaults["lr"] * factor for factor in factors]

    def group(self, parameter: Parameter) -> tuple[float, bool]:
        """The factor on its learning rate, and whether it decays; those that are alike share a group."""
        factor = 1.0
        for pattern, rate in (self.rates or {}).items():
            if parameter.matches(pattern):
                factor *= rate
        return factor, not any(map(parameter.matches, self.no_decay))


def parameters_of(model: nn.Module) -> Iterator[Parameter]:
    """All parameters of a model, in its order, with their kinds."""
    kinds: dict[str, frozenset[str]] = {}

    def walk(module: nn.Module, path: str, around: frozenset[str]) -> None:
        around = around | {kind for kind, held in STANDS_IN.items() if isinstance(module, held)}
        for name, value in module.named_parameters(recurse=False):
            kinds[path + name] = around | {_form(module, name, value)}
        for name, child in module.named_children():
            walk(child, f"{path}{name}.", around)

    walk(model, "", frozenset())
    for name, value in model.named_parameters():
        yield Parameter(name, value, kinds[name])


def _form(module: nn.Module, name: str, value: nn.Parameter) -> str:
    """What a parameter is to the module that holds it, which may say so itself: `parameter_kinds`, kinds by name."""
    if declared := getattr(module, "parameter_kinds", {}).get(name):
        return declared
    if isinstance(module, NORMS):
        return "norm"
    if isinstance(module, nn.Embedding):
        return "embedding"
    stacked = 1 if isinstance(module, Experts) else 0
    return "matrix" if value.ndim - stacked > 1 else "bias"
