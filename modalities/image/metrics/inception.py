"""The Inception network of FID: the graph of 2015-12-05, written from the paper (weights: `inception_weights`)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Kernel = tuple[int, int]
Step = list[tuple[str, int, Kernel]]
"""Convolutions with the same input: name in the PyTorch port's file, output channels, kernel."""


class Convolution(nn.Module):
    """Convolution without bias, batch norm (ε = 0.001), ReLU; with "same" or "valid" padding."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, valid: bool = False
    ) -> None:
        super().__init__()
        padding = (0, 0) if valid else (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        return F.relu(self.bn(self.conv(x)))


@dataclass(frozen=True)
class Plan:
    """A block of parallel branches, whose outputs are concatenated in this order, with the pooled one last.

    A branch is written as in the paper's figures, a sequence of "kernel:channels", with "|" between two convolutions of
    the same input. `pool` is "average" (padding is not counted, as in TensorFlow), "max", or "halve": the last
    convolution of each branch and the pooling have stride 2 with valid padding, and nothing follows the pooling.
    """

    paths: Mapping[str, str]
    pool: str = "halve"
    pooled: int = 0

    def steps(self, path: str) -> list[Step]:
        """Convolutions of a branch, by their names in the port's file: branch5x5_1, branch3x3_2a, branch1x1."""
        out, words = [], self.paths[path].split()
        for i, (kernels, channels) in enumerate((word.split(":") for word in words), 1):
            name, alike = path if len(words) == 1 else f"{path}_{i}", kernels.split("|")
            names = [name] if len(alike) == 1 else [f"{name}{letter}" for letter in "ab"]
            out.append(
                [
                    (each, int(channels), (int(kernel[0]), int(kernel[2])))
                    for each, kernel in zip(names, alike, strict=True)
                ]
            )
        return out


def _block_35(pooled: int) -> Plan:
    long = "1x1:64 3x3:96 3x3:96"
    return Plan(
        {"branch1x1": "1x1:64", "branch5x5": "1x1:48 5x5:64", "branch3x3dbl": long}, "average", pooled
    )


def _block_17(w: int) -> Plan:
    short, long = f"1x1:{w} 1x7:{w} 7x1:192", f"1x1:{w} 7x1:{w} 1x7:{w} 7x1:{w} 1x7:192"
    return Plan({"branch1x1": "1x1:192", "branch7x7": short, "branch7x7dbl": long}, "average", 192)


def _block_8(pool: str) -> Plan:
    short, long = "1x1:384 1x3|3x1:384", "1x1:448 3x3:384 1x3|3x1:384"
    return Plan({"branch1x1": "1x1:320", "branch3x3": short, "branch3x3dbl": long}, pool, 192)


STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
BLOCKS = {  # in the graph: mixed, mixed_1, ... mixed_10
    "Mixed_5b": _block_35(32), "Mixed_5c": _block_35(64), "Mixed_5d": _block_35(64),
    "Mixed_6a": Plan({"branch3x3": "3x3:384", "branch3x3dbl": "1x1:64 3x3:96 3x3:96"}),
    "Mixed_6b": _block_17(128), "Mixed_6c": _block_17(160), "Mixed_6d": _block_17(160), "Mixed_6e": _block_17(192),
    "Mixed_7a": Plan({"branch3x3": "1x1:192 3x3:320", "branch7x7x3": "1x1:192 1x7:192 7x1:192 3x3:192"}),
    "Mixed_7b": _block_8("average"), "Mixed_7c": _block_8("max"),
}  # fmt: skip


class Mixed(nn.Module):
    """A block built from its plan."""

    def __init__(self, inputs: int, plan: Plan) -> None:
        super().__init__()
        self.pool, self.channels = plan.pool, plan.pooled or inputs
        self.paths = [plan.steps(path) for path in plan.paths]
        for path in self.paths:
            wide = inputs
            for step in path:
                last = plan.pool == "halve" and step is path[-1]
                for name, outputs, kernel in step:
                    self.add_module(name, Convolution(wide, outputs, kernel, 2 if last else 1, last))
                wide = sum(outputs for _, outputs, _ in step)
            self.channels += wide
        if plan.pooled:
            self.branch_pool = Convolution(inputs, plan.pooled, (1, 1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        out = []
        for path in self.paths:
            y = x
            for step in path:
                y = torch.cat([self.get_submodule(name)(y) for name, _, _ in step], dim=1)
            out.append(y)
        if self.pool == "halve":
            return torch.cat([*out, F.max_pool2d(x, 3, 2)], dim=1)
        most = self.pool == "max"
        pooled = F.max_pool2d(x, 3, 1, 1) if most else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*out, self.branch_pool(pooled)], dim=1)


class Inception(nn.Module):
    """Inception-v3 (arXiv 1512.00567) as in the TensorFlow graph of 2015-12-05, which defines FID.

    Differences from other libraries' networks: average pooling does not count padding, the last block uses max
    pooling, there are 1,008 classes, and inputs are scaled by FID's protocol instead of ImageNet's mean.
    """

    def __init__(self) -> None:
        super().__init__()
        wide = 3
        for name, outputs in zip(STEM, (32, 32, 64, 80, 192), strict=True):
            side, stride = int(name[-1]), 2 if name == STEM[0] else 1
            self.add_module(name, Convolution(wide, outputs, (side, side), stride, name != STEM[2]))
            wide = outputs
        for name, plan in BLOCKS.items():
            block = Mixed(wide, plan)
            self.add_module(name, block)
            wide = block.channels
        self.fc = nn.Linear(wide, 1008)
        self.eval().requires_grad_(False)

    def forward(
        self, x: Float[Tensor, "B 3 299 299"]
    ) -> tuple[Float[Tensor, "B 2048"], Float[Tensor, "B 2023"], Float[Tensor, "B 1008"]]:
        """Pool 3 (FID); 7 channels of mixed_6/conv at 17 x 17 positions (sFID, arXiv 2103.03841, flattened as in ADM's
        evaluator, positions first); class probabilities from the logits without bias (Inception score).
        """
        for name in STEM:
            x = self.get_submodule(name)(x)
            if name in (STEM[2], STEM[4]):
                x = F.max_pool2d(x, 3, 2)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
            if name == "Mixed_6d":
                spatial = x[:, :7].movedim(1, -1).flatten(1)  # the 1x1 path comes first
        pool = x.mean(dim=(2, 3))
        return pool, spatial, (pool @ self.fc.weight.T).softmax(dim=1)
