"""Maximal update parameterisation (muP): hyperparameters transfer across widths (arXiv 2203.03466, table 8).

Comparing shapes with the same model at a base width tells the kind of each weight. With m the fan-in relative to the
base model's, and for Adam-like optimisers:

    kind      axes that grow      initial standard deviation   learning rate   weight decay
    vector    (no matrix)         unchanged                    1               1
    input     only outputs        the base's                   1               1
    hidden    both                the base's / sqrt(m)         1 / m           m
    output    only inputs         the base's / m               1 / m           m
    router    the same, within a router: / m, or / sqrt(m)     1 / m           m
    fixed     none                unchanged                    1               1

Zeros stay zero, depth is not scaled, and attention logits are scaled by sqrt(d_base) / d for head sizes d.
The optimiser's eps shrinks as gradients do, by the ratio of the widths.
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

FALLS = {"input": 0.0, "hidden": 0.5, "output": 1.0, "router": 1.0}
"""The power of m that divides the initial standard deviation, by kind; other kinds keep theirs."""


@dataclass(frozen=True)
class Scaling:
    """How a weight scales with the width.

    Attributes:
        kind: vector, input, hidden, output, router or fixed.
        ratio: m if the weight's fan-in grows; otherwise 1.
    """

    kind: str
    ratio: float = 1.0


@dataclass(frozen=True)
class Widths:
    """The scaling of a model relative to its base.

    Attributes:
        ratio: of the widths.
        scalings: by parameter name.
    """

    ratio: float
    scalings: Mapping[str, Scaling] = field(repr=False)

    def ratio_of(self, name: str) -> float:
        """m of a parameter. The fan-in of LoRA's A is that of its weight; that of B is the rank."""
        place, kind = plain_name(name)
        return 1.0 if kind == UP else self.scalings[place].ratio

    def __reduce__(self) -> Any:  # a mappingproxy cannot be copied or pickled
        return Widths, (self.ratio, dict(self.scalings))


def set_base(model: Any, base: Any, keep_router_logits: bool = False) -> None:
    """Apply muP to a freshly initialised model, in place: initial values, attention scale, and `model.widths`.

    `ditmoe.training.ParameterGroups` derives learning rates from `widths`. A base of the same width changes nothing.

    Args:
        base: the same model at the base width. Its shapes are used, and, unless `model` is on the meta device, the
            standard deviations of its initial values.
        keep_router_logits: divide the standard deviation of a router's last weights by sqrt(m) only: the initial logits
            then have the same size at all widths, while the strict rule shrinks them by 1 / sqrt(m).

    Raises:
        ValueError: if the two models differ in more than their width.
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
    """Find the kind of each parameter, from the axes in which it differs from the base's.

    Raises:
        ValueError: if parameters or numbers of axes differ, if some axes shrink while others grow, or if the shapes
            leave the kind of a parameter open.
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
    """Router parameters that produce something other than logits, such as a prediction."""
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
