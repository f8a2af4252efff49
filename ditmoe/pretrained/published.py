"""Recognises published checkpoints, and maps their tensors to ditmoe's.

Three families, distinguished by their tensors: DiT (arXiv 2212.09748), DiT-MoE (arXiv 2407.11633; one layout has
attention as `attn.qkv` and `attn.proj`, the other as `attn.Wqkv` and `attn.out_proj` with a LayerNorm on queries and
keys) and DiT-3D (arXiv 2307.01831).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ditmoe.config.folders import config_folder

HEADS = {(12, 384): 6, (12, 768): 12, (24, 1024): 16, (24, 1152): 16, (28, 1152): 16, (40, 1408): 16}
"""Attention heads of the published models, by depth and hidden size."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """The architecture of a published checkpoint, from its tensors.

    Attributes:
        family: "DiT", "DiT-MoE" or "DiT-3D".
        moe_layers: indices of the layers with experts.
        expert_width, shared_width, dense_width: inner widths of the feed-forward layers, 0 for none.
        size: cells per axis of a sample, None if unknown.
        fused: whether attention has the layout with `attn.Wqkv`.
    """

    family: str
    depth: int
    hidden_size: int
    num_heads: int
    num_classes: int
    patch: int
    in_channels: int
    out_channels: int
    size: int | None
    moe_layers: tuple[int, ...]
    num_experts: int
    expert_width: int
    shared_width: int
    dense_width: int
    qk_norm: bool
    fused: bool

    @property
    def axes(self) -> int:
        """Number of axes of a sample's grid."""
        return 3 if self.family == "DiT-3D" else 2

    def __str__(self) -> str:
        grid = " x ".join([str(self.size or "any")] * self.axes)
        parts = [
            f"{self.depth} layers, {self.hidden_size} wide, {self.num_heads} heads",
            "QK LayerNorm" if self.qk_norm else "",
            f"{self.num_experts} experts of width {self.expert_width}" if self.moe_layers else "",
            f"shared width {self.shared_width}" if self.shared_width else "",
            f"patch {self.patch} of {grid} with {self.in_channels} channels",
            "learned sigma" if self.out_channels > self.in_channels else "",
            f"{self.num_classes} classes",
        ]
        return f"{self.family}: {', '.join(part for part in parts if part)}"

    def config(self, top_k: int, time_scale: float) -> dict[str, Any]:
        """The configuration of a ditmoe model of this architecture, for `ditmoe.pretrained.weights`."""
        width = self.hidden_size
        image = self.family != "DiT-3D"
        tokens: dict[str, Any] = {"patch": self.patch}
        if image:
            tokens |= {"_target_": _tokens_of("latents"), "channels": self.in_channels}
            tokens |= {"learn_sigma": self.out_channels > self.in_channels}
        else:
            tokens |= {"_target_": _tokens_of("voxels"), "resolution": self.size}
        router = {"_target_": "ditmoe.moe.TokenChoice", "_partial_": True}
        return {
            "model": {
                "_target_": "ditmoe.model.DiTMoE",
                "hidden_size": width,
                "depth": self.depth,
                "num_heads": self.num_heads,
                "moe_layers": list(self.moe_layers),
                "activation": "swiglu",
                "expert_ratio": self.expert_width / width,
                "shared_ratio": self.shared_width / width,
                "dense_ratio": self.dense_width / width,
                "dense_activation": "gelu_tanh" if image else "gelu",
                "qk_norm": self.qk_norm,
                "time_scale": time_scale,
            },
            "tokens": tokens,
            "router": {**router, "num_experts": self.num_experts, "top_k": top_k}
            if self.moe_layers
            else None,
            "conditioning": {"_target_": "ditmoe.conditioning.ClassLabel", "_partial_": True},
            "num_classes": self.num_classes,
            "size": self.size,
        }


def _tokens_of(name: str) -> str:
    """The class that a YAML file in `configs/tokens/` names."""
    return str(OmegaConf.load(config_folder() / "tokens" / f"{name}.yaml")._target_)


def architecture(
    shapes: Mapping[str, Shape], num_heads: int | None = None, size: int | None = None
) -> Architecture:
    """Derive the architecture from the shapes of a state dict.

    Args:
        num_heads: None takes it from the QK LayerNorm, or from the published model of this depth and width.
        size: cells per axis of a sample; None takes it from the position table.

    Raises:
        ValueError: naming the tensor that is missing or invalid, or the option that must be given.
    """
    embed = _shape(shapes, "x_embedder.proj.weight")
    if len(embed) not in (4, 5) or len(set(embed[2:])) != 1:
        raise ValueError(f"x_embedder.proj.weight must be a square 2-D or 3-D convolution, got {embed}")
    hidden, channels, patch, axes = embed[0], embed[1], embed[2], len(embed) - 2
    layers = {int(m[1]) for key in shapes if (m := re.match(r"blocks\.(\d+)\.", key))}
    missing = min(set(range(len(layers) + 1)) - layers)
    if missing < len(layers) or not layers:
        raise ValueError(f"blocks.{missing} is missing among the {len(layers)} blocks")
    moe_layers = tuple(i for i in sorted(layers) if f"blocks.{i}.moe.gate.weight" in shapes)
    dense = sorted(layers - set(moe_layers))
    experts = shared = 0
    if moe_layers:
        moe = f"blocks.{moe_layers[0]}.moe"
        experts = _shape(shapes, f"{moe}.experts.0.gate_proj.weight")[0]
        shared = shapes.get(f"{moe}.shared_experts.gate_proj.weight", (0,))[0]
    norm = next((shape for key, shape in shapes.items() if key.endswith("attn.q_norm.weight")), None)
    heads = num_heads or (hidden // norm[0] if norm else HEADS.get((len(layers), hidden)))
    if heads is None:
        raise ValueError(f"num_heads must be given for {len(layers)} layers of width {hidden}: num_heads=...")
    return Architecture(
        family="DiT-3D" if axes == 3 else "DiT-MoE" if moe_layers else "DiT",
        depth=len(layers),
        hidden_size=hidden,
        num_heads=heads,
        num_classes=_shape(shapes, "y_embedder.embedding_table.weight")[0] - 1,
        patch=patch,
        in_channels=channels,
        out_channels=_shape(shapes, "final_layer.linear.weight")[0] // patch**axes,
        size=_size(shapes.get("pos_embed"), patch, axes, size),
        moe_layers=moe_layers,
        num_experts=_shape(shapes, f"blocks.{moe_layers[0]}.moe.gate.weight")[0] if moe_layers else 0,
        expert_width=experts,
        shared_width=shared,
        dense_width=_shape(shapes, f"blocks.{dense[0]}.mlp.fc1.weight")[0] if dense else 0,
        qk_norm=norm is not None,
        fused=any(key.endswith("attn.Wqkv.weight") for key in shapes),
    )


def _shape(shapes: Mapping[str, Shape], key: str) -> Shape:
    if key not in shapes or not shapes[key]:
        raise ValueError(f"{key} is missing: this is not a DiT, DiT-MoE or DiT-3D")
    return shapes[key]


def _size(positions: Shape | None, patch: int, axes: int, given: int | None) -> int | None:
    """Cells per axis, from the number of positions."""
    if positions is None:
        if given is None and axes == 3:
            raise ValueError("size must be given, since there is no pos_embed: size=...")
        return given
    found = round(positions[-2] ** (1 / axes)) if len(positions) == 3 else 0
    if found**axes != positions[-2]:
        raise ValueError(f"pos_embed must be (1, a {axes}-th power, hidden size), got {positions}")
    if given is not None and given != found * patch:
        raise ValueError(f"size must be {found * patch}, as pos_embed {positions} has it, got {given}")
    return found * patch


@dataclass(frozen=True)
class Recipe:
    """How to make one tensor of ditmoe.

    Attributes:
        keys: names of the published tensors.
        shape: of each of them.
        join: makes the tensor from them.
    """

    keys: tuple[str, ...]
    shape: Shape
    join: Callable[[list[Tensor]], Tensor]


RENAME = [
    (r"^embed\.", "x_embedder.proj."),
    (r"^timestep\.first", "t_embedder.mlp.0"),
    (r"^timestep\.second", "t_embedder.mlp.2"),
    (r"^conditioning\.table", "y_embedder.embedding_table"),
    (r"^final\.", "final_layer."),
    (r"modulation\.linear", "adaLN_modulation.1"),
    (r"feed_forward\.router", "moe.gate"),
    (r"feed_forward\.shared\.down", "moe.shared_experts.down_proj"),
    (r"feed_forward\.up", "mlp.fc1"),
    (r"feed_forward\.down", "mlp.fc2"),
]


def recipes(model: nn.Module, arch: Architecture) -> dict[str, Recipe]:
    """A recipe for each tensor of a ditmoe model: patches channels last, gate and up fused, experts stacked."""
    attention = ("attn.Wqkv", "attn.out_proj") if arch.fused else ("attn.qkv", "attn.proj")
    names = [
        *RENAME,
        (r"attention\.qkv", attention[0]),
        (r"attention\.out", attention[1]),
        (r"attention\.([qk]_norm)", r"attn.\1"),
    ]

    def recipe(name: str, shape: Shape) -> Recipe:
        block, _, rest = name.partition(".feed_forward.")
        halves = ("gate_proj", "up_proj")
        if rest == "shared.up.weight":
            keys = tuple(f"{block}.moe.shared_experts.{half}.weight" for half in halves)
            return Recipe(keys, (shape[0] // 2, shape[1]), torch.cat)
        if rest in ("experts.up", "experts.down"):
            parts = halves if rest == "experts.up" else ("down_proj",)
            keys = tuple(f"{block}.moe.experts.{e}.{p}.weight" for e in range(shape[0]) for p in parts)
            return Recipe(keys, (shape[1] // len(parts), shape[2]), lambda ts: torch.cat(ts).view(shape))
        source = name
        for pattern, replacement in names:
            source = re.sub(pattern, replacement, source)
        if (
            name == "embed.weight"
        ):  # a convolution (D, C, *patch) becomes a matrix (D, cells * C), channels last
            conv = (arch.hidden_size, arch.in_channels, *[arch.patch] * arch.axes)
            return Recipe((source,), conv, lambda ts: _copy(ts[0].movedim(1, -1).flatten(1)))
        return Recipe((source,), shape, lambda ts: _copy(ts[0]))

    return {name: recipe(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}


def _copy(tensor: Tensor) -> Tensor:
    """A contiguous copy, whatever the layout in the checkpoint."""
    return tensor.clone(memory_format=torch.contiguous_format)


def check(shapes: Mapping[str, Shape], wanted: Mapping[str, Recipe]) -> None:
    """Check that each tensor of the recipes exists in its shape, and no others except the position table.

    Raises:
        ValueError: naming the first that differs.
    """
    known = {"pos_embed"}
    for recipe in wanted.values():
        for key in recipe.keys:
            known.add(key)
            if shapes.get(key) != recipe.shape:
                raise ValueError(f"{key} is {shapes.get(key, 'missing')}, must be {recipe.shape}")
    for key, shape in shapes.items():
        if key not in known:
            raise ValueError(f"{key} {shape} does not belong to this architecture")
