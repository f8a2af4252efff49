"""Learning rate and weight decay per parameter, by name and kind, and by shape under muP.

Rules belong here only: `ParameterGroups.group` has a parameter's name, kind and shape at hand. Kinds are defined in
`ditmoe/model/parameters.py`, the scaling with width in `ditmoe/model/mup.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ditmoe.model import Parameter, Widths, parameters_of
from ditmoe.model.parameters import KINDS as KINDS
from ditmoe.outside import check_number
from ditmoe.parallel import Mesh


class Group(NamedTuple):
    """Common settings of the parameters in a group.

    Attributes:
        rate: factor on the learning rate.
        decays: whether weight decay applies.
        decay: factor on the weight decay.
    """

    rate: float
    decays: bool
    decay: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ParameterGroups:
    """The groups of an optimiser: section `parameters` of the configuration. By default all are one group.

    Args:
        rates: factors on the learning rate by kind (`KINDS`) or name, which may be a pattern such as `blocks.0.*`;
            factors of all that match a parameter are multiplied. A factor of 0 freezes it.
        no_decay: kinds or names without weight decay.

    Raises:
        ValueError: if a factor is not a number of at least zero; later, if a key is no kind and matches no name.
    """

    rates: Mapping[str, Any] | None = None
    no_decay: Sequence[str] = ()

    def __post_init__(self) -> None:
        for pattern, factor in (self.rates or {}).items():
            check_number(f"parameters.rates.{pattern}", factor, 0)

    def optimizer(
        self, make: Callable[[Any], torch.optim.Optimizer], model: nn.Module, mesh: Mesh
    ) -> tuple[torch.optim.Optimizer, list[float]]:
        """Make an optimiser over the parameters of a model; also returns the learning rate of each of its groups.

        Raises:
            ValueError: if a key is no kind and matches no name, or the optimiser has no weight decay to leave out.
        """
        every = list(parameters_of(model))
        for option, patterns in {"rates": self.rates or {}, "no_decay": self.no_decay}.items():
            for pattern in patterns:
                if pattern not in KINDS and not any(each.matches(pattern) for each in every):
                    raise ValueError(
                        f"parameters.{option} must name parameters of this model or kinds of them "
                        f"({', '.join(KINDS)}), none fits {pattern!r}"
                    )
        widths: Widths | None = getattr(model, "widths", None)
        by_group: dict[Group, list[nn.Parameter]] = {}
        for each in (each for each in every if each.value.requires_grad):
            by_group.setdefault(self.group(each, widths), []).append(each.value)
        groups, kept = [], []
        for group, values in by_group.items():
            for part in mesh.groups(values):
                groups.append({"params": part} | ({} if group.decays else {"weight_decay": 0.0}))
                kept.append(group)
        made = make(groups)
        if self.no_decay and "weight_decay" not in made.defaults:
            raise ValueError(
                f"parameters.no_decay must be empty for {type(made).__name__}, which has no weight_decay"
            )
        if widths is not None:
            _scale(made, kept, widths)
        return made, [made.defaults["lr"] * group.rate for group in kept]

    def group(self, parameter: Parameter, widths: Widths | None = None) -> Group:
        """The settings of a parameter; parameters with equal settings share a group."""
        factor = 1.0
        for pattern, rate in (self.rates or {}).items():
            if parameter.matches(pattern):
                factor *= rate
        decays = not any(map(parameter.matches, self.no_decay))
        ratio = 1.0 if widths is None else widths.ratio_of(parameter.name)
        return Group(factor / ratio, decays, ratio)


def _scale(optimizer: torch.optim.Optimizer, groups: Sequence[Group], widths: Widths) -> None:
    """Set weight decay and eps for muP: the decay compensates the smaller learning rate, eps shrinks as gradients do.

    Raises:
        ValueError: if this optimiser's steps scale with gradients, for which muP has other rules.
    """
    if "betas" not in optimizer.defaults:
        raise ValueError(
            f"model.base_width needs an optimiser like Adam, with betas, got {type(optimizer).__name__}"
        )
    for own, group in zip(optimizer.param_groups, groups, strict=True):
        if "weight_decay" in own:
            own["weight_decay"] *= group.decay
        if "eps" in own:
            own["eps"] /= widths.ratio
