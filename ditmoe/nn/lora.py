"""Low-rank adaptation of matrices, including stacked experts (LoRA, arXiv 2106.09685).

A weight W (..., out, in) becomes W + scale B A with A (..., r, in) and B (..., out, r), separate for each expert. B is
initialised to zero, so that nothing changes at first; W is frozen. `torch.nn.utils.parametrize` replaces W by the sum,
so that every use of the weight sees it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ditmoe.outside import check_number, printable

MOST_RANK = 4096
DOWN, UP = "lora_A", "lora_B"
"""Names of A and B in files, as in peft and diffusers."""
State = dict[str, tuple[Tensor, Tensor]]
"""A and B by parameter name."""


class LowRank(nn.Module):
    """scale B A, added to a weight.

    Args:
        down, up: A and B.
        name: of the adapter; there may be several.
    """

    disabled: float | None = None
    """The scale that it had before all adapters were disabled together."""

    def __init__(
        self,
        down: Float[Tensor, "*E r i"],
        up: Float[Tensor, "*E o r"],
        scale: float = 1.0,
        name: str = "default",
    ) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(down), nn.Parameter(up)
        self.scale, self.name = scale, name

    def forward(self, weight: Float[Tensor, "*E o i"]) -> Float[Tensor, "*E o i"]:
        if not self.scale:
            return weight
        return weight + (self.scale * (self.lora_B @ self.lora_A)).to(weight.dtype)


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which matrices of a model are adapted, and how: section `lora` of the configuration.

    Args:
        rank: r; 0 adapts nothing, and the whole model is trained.
        alpha: the scale is alpha / r; None: r.
        targets: components of a parameter's dotted name (`attention`, `experts`), or patterns for all of it
            (`blocks.0.*`).
        also: likewise, parameters to train in full, such as the embedding table of new classes.

    Raises:
        ValueError: if the rank is not a whole number up to `MOST_RANK`, alpha is not above 0, or there are no targets.
    """

    rank: int = 0
    alpha: float | None = None
    targets: Sequence[str] = ("attention", "experts")
    also: Sequence[str] = ("conditioning",)

    def __post_init__(self) -> None:
        check_number("lora.rank", self.rank, 0, MOST_RANK, whole=True)
        if self.alpha is not None:
            check_number("lora.alpha", self.alpha, above=0)
        for name, words in {"targets": self.targets, "also": self.also}.items():
            if (
                not isinstance(words, Sequence)
                or isinstance(words, str)
                or not all(type(w) is str for w in words)
            ):
                raise ValueError(f"lora.{name} must be a list of names of parameters, got {words!r}")
        if self.rank and not self.targets:
            raise ValueError(
                "lora.targets must name at least one matrix to adapt, got none (lora.rank=0: no LoRA)"
            )

    @property
    def scale(self) -> float:
        """Factor on B A."""
        return 1.0 if self.alpha is None else self.alpha / max(1, self.rank)

    def attach(self, model: nn.Module, generator: torch.Generator | None = None) -> None:
        """Adapt a model in place; parameters that are neither adapted nor in `also` are frozen.

        Raises:
            ValueError: if a name or pattern matches nothing, or nothing that can be adapted.
        """
        if not self.rank:
            return
        found = {name: value for name, value in model.named_parameters() if adaptable(model, name)}
        for word in self.targets:
            if not any(fits(name, word) for name in found):
                parts = sorted({part for name in found for part in name.split(".") if not part.isdigit()})
                raise ValueError(
                    f"lora.targets must name matrices of this model ({', '.join(parts)}), none fits {word!r}"
                )
        model.requires_grad_(False)
        for name, value in model.named_parameters():
            value.requires_grad_(any(fits(name, word) for word in self.also))
        for name, value in found.items():
            if any(fits(name, word) for word in self.targets):
                value.requires_grad_(False)
                *lead, out, width = value.shape
                down = torch.empty(*lead, self.rank, width, device=value.device)
                if not down.is_meta:
                    down = torch.randn(down.shape, generator=generator).to(down) / width**0.5
                add(
                    model,
                    name,
                    LowRank(down, value.new_zeros(*lead, out, self.rank, dtype=down.dtype), self.scale),
                )


def fits(name: str, word: str) -> bool:
    """Whether a word is a component of a parameter's dotted name, or a pattern that matches all of it."""
    return word in name.split(".") or fnmatchcase(name, word)


def adaptable(model: nn.Module, name: str) -> bool:
    """Whether a parameter is a matrix of a linear layer or a stack of expert matrices, outside of routers."""
    module, last = owner(model, name)
    value = getattr(module, last)
    linear = isinstance(module, nn.Linear) and last == "weight"
    return linear or (value.ndim == 3 and not hasattr(type(module), "CLAIMS"))  # CLAIMS marks routers


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and its name there."""
    path, _, last = name.rpartition(".")
    return model.get_submodule(path), last


def original(model: nn.Module, name: str) -> nn.Parameter:
    """A weight without its adapters."""
    module, last = owner(model, name)
    if parametrize.is_parametrized(module, last):
        module, last = module.parametrizations[last], "original"  # type: ignore[index, assignment]
    return getattr(module, last)


def add(model: nn.Module, name: str, low: LowRank) -> None:
    """Adapt one weight, which may already be adapted."""
    parametrize.register_parametrization(*owner(model, name), low, unsafe=True)


def adapted(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, list[LowRank]]]:
    """Name of each adapted parameter, its module, its name there, and its adapters."""
    for path, module in list(model.named_modules()):
        if parametrize.is_parametrized(module):
            for last, each in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
                lows = [low for low in each if isinstance(low, LowRank)]
                yield f"{path}.{last}".lstrip("."), module, last, lows


def product_shape(down: Sequence[int], up: Sequence[int]) -> tuple[int, ...] | None:
    """The shape of B A from those of A and B; None if they do not match."""
    fit = len(down) == len(up) >= 2 and tuple(up[:-2]) == tuple(down[:-2]) and up[-1] == down[-2]
    return (*up[:-1], down[-1]) if fit else None


def overflows(down: Float[Tensor, "*E r i"], up: Float[Tensor, "*E o r"]) -> bool:
    """Whether B A has values that are not finite; it is computed only where the sizes of A and B allow that."""
    most = float(down.abs().amax()) * float(up.abs().amax()) * down.shape[-2]
    return not most < torch.finfo(down.dtype).max / 2 and not bool((up @ down).isfinite().all())


def remove(model: nn.Module, merge: bool) -> None:
    """Remove all adapters from a model, merging them into the weights or discarding them."""
    for _, module, last, _ in adapted(model):
        parametrize.remove_parametrizations(module, last, leave_parametrized=merge)


def plain_name(name: str) -> tuple[str, str]:
    """Map a name in an adapted model to the weight's name in the plain one, and `DOWN` or `UP` if it is its A or B."""
    path, adapted, rest = name.partition(".parametrizations.")
    last, _, kind = rest.partition(".")
    return (f"{path}.{last}", kind.rpartition(".")[2].removeprefix("original")) if adapted else (name, "")


def split(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """Split the tensors of an adapted model into those of the plain one and the adapters, both by plain names.

    Raises:
        KeyError: for an A without a B, or the reverse.
        ValueError: for a weight, an A or a B that is there twice under different names.
    """
    plain: dict[str, Any] = {}
    added: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        place, kind = plain_name(name)
        own, key = (added.setdefault(place, {}), kind) if kind else (plain, place)
        if key in own:
            raise ValueError(f"{printable(place)} is there twice{f', as {printable(kind)}' if kind else ''}")
        own[key] = value
    return plain, {name: (each[DOWN], each[UP]) for name, each in added.items()}
