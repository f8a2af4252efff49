"""Initialise a model from another one's weights: upcycle dense layers to experts, reuse blocks for other modalities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ditmoe.model.backbone import DiTMoE
from ditmoe.model.neurons import split
from ditmoe.moe import Experts, MoE
from ditmoe.nn import FeedForward


@dataclass(frozen=True)
class Transfer:
    """Record of a transfer, by tensor names.

    Attributes:
        taken: unchanged from the source.
        copied: experts, each a copy of the dense layer (sparse upcycling, arXiv 2212.05055).
        adopted: conditioning, converted from another kind of conditioning (`Conditioning.adopted`).
        split: experts, each a part of the dense layer's neurons (Dense2MoE, arXiv 2510.09094).
        new: left at their initialisation; shared experts beside copies are zero.
        unused: in the source.
        exact: whether feed-forward layers compute the same as in the source.
    """

    taken: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    exact: bool = True

    def lines(self) -> list[str]:
        """A report for the user."""
        counts = {
            "taken": self.taken,
            "copied to every expert": self.copied,
            "from another kind of conditioning": self.adopted,
            "made of a dense layer's neurons": self.split,
            "new": self.new,
        }
        lines = [f"  {len(names):4d} tensors {what}{_some(names)}" for what, names in counts.items() if names]
        if self.unused:
            lines.append(f"  {len(self.unused):4d} of the source not used{_some(self.unused)}")
        if self.split:
            lines.append(
                "  experts are parts of the dense layers, so the first prediction is not the dense model's"
            )
        elif not self.exact:
            lines.append(
                "  experts start as copies, but their weights do not sum to one: "
                "router=token_choice router.renormalize=true makes the first prediction the dense model's"
            )
        return lines


@torch.no_grad()
def transfer(
    model: DiTMoE,
    weights: Mapping[str, Tensor],
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    neurons: bool = False,
    importance: Mapping[int, Tensor] | None = None,
) -> Transfer:
    """Initialise `model` from `weights`, in place.

    A tensor is taken where name and shape match. Where the source has a dense layer and the model a mixture, every
    routed expert becomes a copy, and shared experts are zeroed. Everything else keeps its initialisation: blocks of a
    2-D model can be reused for clouds or clips, with new embedding, output and labels (DiT-3D's transfer, arXiv
    2307.01831, section 3.4).

    Args:
        noise: standard deviation of the noise added to each copy. Exact copies get the same gradients up to their
            weights, and stay alike under a router that cannot tell them apart (arXiv 2605.19378).
        generator: of the noise, on the CPU.
        neurons: make experts from parts of the dense layers in place of copies (`ditmoe.model.neurons`).
        importance: with `neurons`, the importance of the neurons of each block index; where missing, it is derived
            from the weights.

    Raises:
        ValueError: if no block matches.
    """
    own = model.state_dict()
    parts = _split(model, weights, importance or {}) if neurons else []
    adopted = {f"conditioning.{name}": source for name, source in model.conditioning.adopted(weights).items()}
    found = _matched(model, weights, without=parts) | adopted
    copied = [name for name, (source, _) in found.items() if source != name and name not in adopted]
    for name, (_, value) in found.items():
        own[name].copy_(value)
        if noise and name in copied:
            own[name].add_(noise * torch.randn(own[name].shape, generator=generator).to(own[name]))
    exact = not parts
    for index, block in enumerate(model.blocks):
        layer = block.feed_forward
        if isinstance(layer, MoE) and f"blocks.{index}.feed_forward.experts.down" in copied:
            exact &= layer.router.weights_sum_to_one
            for parameter in layer.shared.down.parameters() if isinstance(layer.shared, FeedForward) else ():
                parameter.zero_()
    used = {source for source, _ in found.values()}
    used |= {name for name in weights if _block_of(name) in {_block_of(other) for other in parts}}
    return Transfer(
        taken=[name for name in found if name not in (*copied, *adopted)],
        copied=copied,
        adopted=list(adopted),
        split=parts,
        new=[name for name in own if name not in found and name not in parts],
        unused=[name for name in weights if name not in used],
        exact=exact,
    )


def _matched(
    model: DiTMoE, weights: Mapping[str, Tensor], without: Sequence[str]
) -> dict[str, tuple[str, Tensor]]:
    """Map tensors of the model, except those in `without`, to the source tensor's name and values, where one matches.

    Raises:
        ValueError: if no block matches.
    """
    own = model.state_dict()
    found = {
        name: source
        for name in own
        if name not in without and (source := _source(name, own[name], weights)) is not None
    }
    for index in range(len(model.blocks)):  # an expert must match as a whole
        experts = [name for name in own if name.startswith(f"blocks.{index}.feed_forward.experts.")]
        if not all(name in found for name in experts):
            found = {name: source for name, source in found.items() if name not in experts}
    if not any(name.startswith("blocks.") for name in found):
        name = "blocks.0.attention.out.weight"
        there = tuple(weights[name].shape) if name in weights else "missing"
        raise ValueError(f"no block fits: {name} is {there} there, {tuple(own[name].shape)} here")
    return found


def _split(model: DiTMoE, weights: Mapping[str, Tensor], importance: Mapping[int, Tensor]) -> list[str]:
    """Split the neurons of dense layers over mixtures of plain experts; returns the names of those tensors."""
    names = []
    for index, block in enumerate(model.blocks):
        layer, prefix = block.feed_forward, f"blocks.{index}.feed_forward."
        if not isinstance(layer, MoE) or not isinstance(layer.shared, FeedForward | None):
            continue
        dense = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        alike = type(layer.experts) is Experts and ("up.bias" in dense) == (layer.experts.up_bias is not None)
        gates = layer.experts.up.shape[1] // layer.experts.down.shape[2]
        if (
            alike
            and "up.weight" in dense
            and len(dense["up.weight"]) == gates * dense["down.weight"].shape[1]
        ):
            split(layer, dense, importance.get(index))
            names += [prefix + n for n in layer.state_dict() if n.startswith(("experts.", "shared."))]
    return names


def _block_of(name: str) -> str | None:
    """The name of the feed-forward layer that a tensor belongs to."""
    return name.partition(".feed_forward.")[0] if ".feed_forward." in name else None


def _source(name: str, own: Tensor, weights: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    """Name and values of the source tensor for this one; for an expert's, those of the dense layer."""
    if name in weights:
        return (name, weights[name]) if weights[name].shape == own.shape else None
    for part in ("up", "down"):
        for expert, dense in (
            (f"experts.{part}", f"{part}.weight"),
            (f"experts.{part}_bias", f"{part}.bias"),
        ):
            if name.endswith(f"feed_forward.{expert}"):
                source = name.removesuffix(expert) + dense
                if source in weights and weights[source].shape == own.shape[1:]:
                    return source, weights[source]
    return None


def _some(names: Sequence[str], limit: int = 6) -> str:
    """The first distinct prefixes of the names, as text."""
    parts = list(
        dict.fromkeys(
            ".".join(n.split(".")[2:4] if n.startswith("blocks.") else n.split(".")[:1]) for n in names
        )
    )
    return f": {', '.join(parts[:limit])}{', ...' if len(parts) > limit else ''}"
