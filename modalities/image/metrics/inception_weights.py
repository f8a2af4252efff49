"""Inception's published weights: the file of the PyTorch port, which has the weights of the TensorFlow graph."""

from hashlib import sha256
from os import PathLike
from pathlib import Path

import torch

from ditmoe.checkpoint import in_memory, open_file
from ditmoe.outside import is_regular, printable, read_regular
from modalities.image.metrics.inception import Inception

PORT = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
MOST = 2**28
"""Most bytes of the weights, more than twice the file's size."""
PORT_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def load(weights: str | PathLike | None) -> tuple[Inception, str]:
    """The network with its published weights, and the SHA-256 of their file; nothing in the file is executed.

    Args:
        weights: the port's file, as a path or as its URL `PORT`, from which it is downloaded once into torch's hub
            folder. The frozen graph that ADM's evaluator loads has the same weights; the preprocessing of the
            evaluators is in `features`, and the outputs they use are in `inception`.

    Raises ValueError if there are no weights, or they belong to another network.
    """
    if weights is None:
        raise ValueError(
            f"FID needs the weights of its Inception network, but weights is not given: the file of {PORT}, "
            "or this address; features=pixels needs none"
        )
    file = _fetched(str(weights)) if "://" in str(weights) else Path(weights)
    if not is_regular(file):
        raise ValueError(
            f"weights must be the Inception file of FID, but {file} does not exist; it is at {PORT}"
        )
    content = read_regular(file, MOST)
    try:
        kept = {
            name: value for name, value in open_file(file).items() if not name.endswith("num_batches_tracked")
        }
    except Exception as error:  # fails in many ways, none of them informative
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
    if address != PORT:
        raise ValueError(f"weights must be a file or {PORT}, got {address}")
    file = Path(torch.hub.get_dir()) / "checkpoints" / address.rsplit("/", 1)[1]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(file), PORT_SHA256)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"weights could not be fetched from {address} ({error}): fetch them by hand"
            ) from error
    return file
