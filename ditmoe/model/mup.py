"""Maximal update parameterisation (muP): what is tuned at one width holds at another (arXiv 2203.03466, table 8).

The same model at a base width tells by its shapes what each weight is. With m, the size of the axis that a weight sums
over, over what it is at the base, and for optimisers of Adam's kind:

    kind      axes that grow      initial deviation            learning rate   weight decay
    vector    (no matrix)         as it is                     1               1
    input     outputs alone       the base's                   1               1
    hidden    both                the base's / sqrt(m)         1 / m           m
    output    inputs alone        the base's / m               1 / m           m
    router    the same, within a router: / m, or / sqrt(m)     1 / m           m
    fixed     none                as it is                     1               1

What is zero stays zero, depth stays as it is, and the scale of attention is that of the base's heads, sqrt(d_base) / d.
The optimiser's eps falls as gradients do, by the ratio of the widths.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ditmoe.model.initialization import rescale
from ditmoe.model.parameters import Parameter, parameters_of
from ditmoe.moe import Router
from ditmoe.nn.lora import UP, plain_name

KINDS = ("vector", "input", "hidden", "output", "router", "fixed")
FALLS = {"input": 0.0, "hidden": 0.5, "output": 1.0, "router": 1.0}
"""The power of m by which the initial deviation of a kind falls; of the others it stays what it is."""


@dataclass(frozen=True)
class Scaling:
    """How a weight follows the width.

    Attributes:
        kind: one of `KINDS`.
        ratio: m of a weight that sums over an axis that grows; 1 for all others.
    """

    kind: str
    ratio: float = 1.0


@dataclass(frozen=True)
class Widths:
    """A model beside its base.

    Attributes:
        ratio: of their widths.
        scalings: of each parameter, by its name.
    """

    ratio: float
    scalings: Mapping[str, Scaling] = field(repr=False)

    def ratio_of(self, name: str) -> float:
        """m of a parameter. LoRA's A sums over the axis that its weight sums over; its B over the rank alone."""
        place, kind = plain_name(name)
        return 1.0 if kind == UP else self.scalings[place].ratio

    def __reduce__(self) -> Any:  # a read-only mapping cannot be copied by itself
        return Widths, (self.ratio, dict(self.scalings))


def set_base(model: Any, base: Any, keep_router_logits: bool = False) -> None:
    """Make a freshly initialised model that of muP, in place: initial values, scale of attention, and `model.widths`.

    The latter holds what `ditmoe.training.ParameterGroups` makes learning rates of. A base of the same width changes
    nothing.

    Args:
        base: the same model at the base width. Of it shapes are read, and of a model with values the deviations of the
            initial ones, all layers that are alike together.
        keep_router_logits: let the deviation of a router's last weights fall by sqrt(m): at birth its logits are then
            of one size at all widths, where the strict rule lets them fade as 1 / sqrt(m).

    Raises:
        ValueError: if the two differ in more than their width.
    """
    scalings = compare(model, base)
    pairs = list(zip(model.modules(), base.modules(), strict=True))
    falls = FALLS | {"router": 0.5} if keep_router_logits else FALLS
    if not any(p.is_meta for p in model.parameters()):
        matrices = {name: s for name, s in scalings.items() if s.kind in falls}
        rescale(model, base, {name: s.ratio ** -falls[s.kind] for name, s in matrices.items()})
    for own, small in pairs:
        if hasattr(own, "gain") and hasattr(own, "head_size"):
            own.gain = math.sqrt(small.head_size / own.head_size)
    ratio = model.embed.out_features / base.embed.out_features
    model.widths = Widths(ratio, MappingProxyType(scalings))


def compare(model: nn.Module, base: nn.Module) -> dict[str, Scaling]:
    """The kind of each parameter, from the axes in which it differs from the base's.

    Raises:
        ValueError: if one of the two has other parameters, axes, or an axis that shrinks where others grow; or if
            shapes do not say what a parameter is.
    """
    small = {name: value.shape for name, value in base.named_parameters()}
    other = _beside_logits(model)
    scalings, larger = {}, set()
    for each in parameters_of(model):
        shape = small.pop(each.name, None)
        if shape is None or len(shape) != each.value.ndim:
            there = "missing" if shape is None else tuple(shape)
            raise ValueError(
                f"the model must have the same parameters at its base width, {each.name} is {there} there, "
                f"{tuple(each.value.shape)} here"
            )
        scalings[each.name] = _scaling(each, shape, each.name not in other)
        larger |= {n > b for n, b in zip(each.value.shape, shape, strict=True) if n != b}
    if small or len(larger) > 1:
        what = f"{next(iter(small))} is there alone" if small else "some axes grow and others shrink"
        raise ValueError(f"the model must have the same parameters at its base width, {what}")
    return scalings


def _beside_logits(model: nn.Module) -> set[str]:
    """Parameters of routers that give something else than logits, such as a prediction."""
    routers = (m for m in model.modules() if isinstance(m, Router))
    parts = [part for m in routers for name, part in m.named_children() if name in m.beside_logits]
    theirs = {id(value) for part in parts for value in part.parameters()}
    return {name for name, value in model.named_parameters() if id(value) in theirs}


def _scaling(each: Parameter, base: torch.Size, logits: bool) -> Scaling:
    shape = each.value.shape
    grows = [n != b for n, b in zip(shape, base, strict=True)]
    if not any(grows):
        return Scaling("fixed")
    if "matrix" not in each.kinds:
        return Scaling("vector")
    if not grows[each.fan_in]:
        return Scaling("input")
    ratio = shape[each.fan_in] / base[each.fan_in]
    if sum(grows) > 1:
        return Scaling("hidden", ratio)
    if not each.sure:
        raise ValueError(
            f"{each.name} may be a table of vectors or sum over its last axis: parameter_kinds of its class must say "
            f"which, embedding or matrix"
        )
    return Scaling("router" if logits and "router" in each.kinds else "output", ratio)
