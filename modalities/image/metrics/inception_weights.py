"""Inception's published weights: the PyTorch port's file, or the frozen TensorFlow graph without TensorFlow."""

import math
from collections.abc import Iterator
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditmoe.checkpoint import in_memory, open_file
from ditmoe.outside import is_regular, printable, read_regular
from modalities.image.metrics.inception import BLOCKS, STEM, Inception

PORT = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
GRAPH = (
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/classify_image_graph_def.pb"
)
MOST = 2**28
"""Bytes of weights, more than twice what either file has."""
PORT_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def load(weights: str | PathLike | None) -> tuple[Inception, str]:
    """The network with its published weights, and the SHA-256 of their file; nothing in the file is executed.

    Args:
        weights: the port's file or the frozen graph, at a path or at one of their addresses, `PORT` and `GRAPH`,
            from which they are fetched once into torch's hub folder.

    Raises ValueError where there are none, or where they are another network's.
    """
    if weights is None:
        raise ValueError(
            f"FID needs the weights of its Inception network, but weights is not given: the file of {PORT} (or the "
            f"graph, {GRAPH}), or one of these addresses; features=pixels needs none"
        )
    file = _fetched(str(weights)) if "://" in str(weights) else Path(weights)
    if not is_regular(file):
        raise ValueError(
            f"weights must be the Inception file of FID, but {file} does not exist; it is at {PORT}"
        )
    content = read_regular(file, MOST)
    try:
        tensors = _from_graph(content) if content[:1] == b"\n" else open_file(file)
        kept = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    except Exception as error:  # it fails in many ways, none of which tells a person more
        raise ValueError(f"weights must be FID's Inception file; {file} is not, or is damaged") from error
    network = Inception()
    wanted = {n: v for n, v in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    shapes = {str(name): tuple(getattr(value, "shape", ())) for name, value in kept.items()}
    wrong = sorted(
        n for n in wanted.keys() | shapes.keys() if n not in wanted or tuple(wanted[n].shape) != shapes.get(n)
    )
    if wrong:
        raise ValueError(
            f"weights must be the 1,008-class Inception of FID, from {PORT}; in {file}, {len(wrong)} tensors are "
            f"missing, unknown or of another shape, as {printable(wrong[0])}"
        )
    network.load_state_dict({name: in_memory(value) for name, value in kept.items()}, strict=False)
    return network, sha256(content).hexdigest()


def _fetched(address: str) -> Path:
    if address not in (PORT, GRAPH):
        raise ValueError(f"weights must be a file, {PORT} or {GRAPH}, got {address}")
    file = Path(torch.hub.get_dir()) / "checkpoints" / address.rsplit("/", 1)[1]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(file), PORT_SHA256 if address == PORT else None)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"weights could not be fetched from {address} ({error}): fetch them by hand"
            ) from error
    return file


def graph_names() -> dict[str, str]:
    """Convolution of the port -> its name in the TensorFlow graph: paths of one convolution lie in the block itself,
    others in tower, tower_1, ..., and convolutions of a tower count from conv; those side by side lie in mixed.
    """
    names = {name: _counted("conv", i) for i, name in enumerate(STEM)}
    for i, (block, plan) in enumerate(BLOCKS.items()):
        paths = [plan.steps(path) for path in plan.paths]
        towers = [p for p in paths if len(p) > 1] + ([[[("branch_pool", 0, (1, 1))]]] if plan.pooled else [])
        names |= {f"{block}.{p[0][0][0]}": f"{_counted('mixed', i)}/conv" for p in paths if len(p) == 1}
        for tower, path in enumerate(towers):
            for j, step in enumerate(path):
                for k, (name, _, _) in enumerate(step):
                    own = _counted("conv", j) if len(step) == 1 else f"mixed/{_counted('conv', k)}"
                    names[f"{block}.{name}"] = f"{_counted('mixed', i)}/{_counted('tower', tower)}/{own}"
    return names


def _counted(name: str, i: int) -> str:
    return f"{name}_{i}" if i else name


def _from_graph(content: bytes) -> dict[str, Tensor]:
    """The port's tensors out of a frozen GraphDef; kernels lie there as (height, width, in, out)."""
    found = dict(_constants(memoryview(content)))
    tensors = {"fc.weight": found["softmax/weights"].T, "fc.bias": found["softmax/biases"]}
    norm = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    for name, graph in graph_names().items():
        tensors[f"{name}.conv.weight"] = found[f"{graph}/conv2d_params"].transpose(3, 2, 0, 1)
        tensors |= {
            f"{name}.bn.{ours}": found[f"{graph}/batchnorm/{theirs}"] for ours, theirs in norm.items()
        }
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in tensors.items()}


def _constants(content: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    """Float constants of a GraphDef by name: node = 1 {name = 1, op = 2, attr = 5 {key = 1, value = 2}}; the value's
    tensor = 8 {dtype = 1, shape = 2 {dim = 2 {size = 1}}, content = 4, float_val = 5}.
    """
    left = MOST // 4
    for number, node in _fields(content):
        fields = list(_fields(node)) if number == 1 else []
        if (2, b"Const") not in fields:
            continue
        name = str(next(value for key, value in fields if key == 1), "utf-8")
        attributes = [dict(_fields(value)) for key, value in fields if key == 5]
        tensor = list(_fields(dict(_fields(next(a[2] for a in attributes if a[1] == b"value")))[8]))
        if (1, 1) in tensor:  # DT_FLOAT
            sizes = [
                dict(_fields(dim)).get(1, 0) for key, shape in tensor if key == 2 for _, dim in _fields(shape)
            ]
            values = np.frombuffer(b"".join(v for k, v in tensor if k in (4, 5)), "<f4")
            if (left := left - math.prod(sizes)) < 0:
                raise ValueError("its constants are larger than the network")
            yield name, np.broadcast_to(values[0], sizes) if len(values) == 1 else values.reshape(sizes)


def _fields(content: memoryview) -> Iterator[tuple[int, Any]]:
    """Fields of a protobuf message: numbers as they are, 32- and 64-bit values and nested messages as views."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        if key & 7 == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        size, at = ({1: 8, 5: 4}[key & 7], at) if key & 7 != 2 else _varint(content, at)
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """An integer in groups of 7 bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte, at = content[at], at + 1
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("an integer has more than 64 bits")
