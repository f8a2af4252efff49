"""Limits of memory and work: models, samples and requests that are too large are rejected before any allocation."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ditmoe.config import build
from ditmoe.config.words import shape_asked
from ditmoe.modality import Modality
from ditmoe.model import DiTMoE
from ditmoe.nn import Layout
from ditmoe.outside import check_memory, check_number

LARGEST_SAMPLE, LARGEST_TOKENS = 2**22, 2**26
"""Most elements of a sample, and of its tokens in the model, for untrusted checkpoints: 16 and 256 MB."""
LARGEST_WORK, WORK_PER_WEIGHT = 2**47, 2**29
"""Most multiply-adds for one sample of an untrusted checkpoint: half an hour on a few cores; or, per weight of the
model, 2^18 tokens for 1000 steps with guidance.

DiT-MoE-G/2 at 512 px takes 2^21 per weight, for 1000 steps.
"""
COPIES = 4
"""Least number of copies of a batch in memory: noise, state, the model's input and its output."""


def check_depth(model: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Raises ValueError if there are more layers than tensors, before any layer is built."""
    if not isinstance(model["depth"], int) or model["depth"] > len(weights):
        raise ValueError(
            f"model.depth must be at most the number of tensors = {len(weights)}, got {model['depth']!r}"
        )


def check_shape(shape: Sequence[int], most: float = LARGEST_SAMPLE) -> None:
    """Raises ValueError unless a sample's shape is positive and has at most `most` elements."""
    if not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"the shape of a sample must be of positive whole numbers, got {list(shape)}")
    if math.prod(shape) > most:
        raise ValueError(
            f"a sample would have the shape {list(shape)}, which is very large: say trust=true to allow it"
        )


def check_work(
    model: DiTMoE, shape: Sequence[int], steps: int = 1, allowed_by: str = "say trust=true"
) -> None:
    """Reject a checkpoint with few weights whose sampling would take hours, or more memory than there is.

    Counts the tokens of a sample and the products with weights and between tokens, twice per step for guidance.

    Args:
        shape: of a sample.
        steps: default number of sampling steps.
        allowed_by: how to allow it, for the error.

    Raises:
        ValueError: with the number of tokens or multiply-adds.
    """
    tokens, x = model.tokens, torch.empty(1, *shape, device="meta")
    grid = tokens.grid(x)
    number = math.prod(grid)
    width = max(tokens.in_features, tokens.out_features, model.embed.out_features)
    if number * width > LARGEST_TOKENS:
        raise ValueError(f"a sample would be {number} tokens of {width} numbers: to allow it, {allowed_by}")
    layout, weights = Layout.even(grid, 1, torch.device("cpu")), sum(p.numel() for p in model.parameters())
    blocks: Iterable[Any] = model.blocks
    products = sum(2 * layout.pairs(block.within, block.window) for block in blocks)
    work = 2 * steps * (number * weights + products * model.embed.out_features)
    if work > max(LARGEST_WORK, WORK_PER_WEIGHT * weights):
        raise ValueError(
            f"a sample would take {work:.1e} multiply-adds, of {number} tokens, {weights} weights and {steps} steps: "
            f"to allow it, {allowed_by}"
        )


def check_width(model: dict[str, Any]) -> None:
    """Reject a model whose attention matrices exceed the machine's memory, before they are filled for minutes.

    Raises:
        ValueError: with the memory that they need.
    """
    width, depth = (model.get(name, 1) for name in ("hidden_size", "depth"))
    for name, value in (("hidden_size", width), ("depth", depth)):
        check_number(name, value, 1, whole=True)
    check_memory(16 * width**2 * depth, f"attention matrices of hidden_size={width} and depth={depth}")


def check_training(
    config: Mapping[str, Any], modality: Modality, batch_size: int, device: torch.device, share: int = 1
) -> None:
    """Reject a model that this machine cannot train, before its weights are allocated.

    Counts a lower bound: the weights and their average, and on a CPU the gradient and a batch (`COPIES` of the samples,
    and the tokens once), all in float32. A GPU reports exhausted memory itself.

    Args:
        batch_size: samples of this process.
        share: number of processes among which the weights are sharded.

    Raises:
        ValueError: with the memory that it needs.
    """
    modality.data_facts()  # computes what is fitted to the data outside of the meta device
    with torch.device("meta"):
        model = build.make_model(config, modality)
    weights = sum(p.numel() for p in model.parameters()) / share
    check_memory(8 * weights, f"{weights / 1e6:.4g} M weights and their average", "a smaller model")
    if device.type == "cpu":
        shape, x = tuple(modality.sample_shape), torch.empty(1, *modality.sample_shape, device="meta")
        tokens = math.prod(model.tokens.grid(x)) * max(
            model.tokens.in_features, config["model"]["hidden_size"]
        )
        sample = COPIES * math.prod(shape) + (0 if config["model"].get("mask_ratio") else tokens)
        check_memory(
            12 * weights + 4 * batch_size * sample,
            f"a model of {weights / 1e6:.4g} M weights and batches of {batch_size} samples of shape {shape}",
            "a smaller trainer.batch_size, or a smaller model",
        )


def check_request(modality: Modality, num: int, batch_size: int = 32, **words: Any) -> None:
    """Reject a request for samples that exceeds this machine's memory, before anything is allocated.

    Args:
        words: the modality's own options, for the shape.

    Raises:
        ValueError: naming the invalid number, or the memory that is needed.
    """
    for name, value in {"num": num, "batch_size": batch_size}.items():
        check_number(name, value, 1, whole=True)
    check_samples(shape_asked(modality, words), num, batch_size)


def check_samples(shape: Sequence[int], num: int, batch_size: int) -> None:
    """Raises ValueError, naming the memory, if samples of a shape exceed this machine's, batches of them included."""
    check_memory(
        4 * math.prod(shape) * (num + COPIES * min(num, batch_size)),
        f"{num} samples of shape {tuple(shape)}, {min(num, batch_size)} at a time,",
        "fewer or smaller ones, or a smaller batch_size",
    )
