"""The inputs of an analysis: held-out samples, each at several times, with noise seeded by sample and time bin."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.conditioning import Condition, Conditioning
from ditmoe.diffusion import HORIZON, Process, torch_generator
from ditmoe.modality import Encoding, Metric, Modality
from ditmoe.model import DiTMoE


@dataclass(frozen=True)
class Probe:
    """Samples and the times at which they are evaluated; each pair is one pass of a sample.

    Attributes:
        x0: samples in the model's space.
        asked: their own classes, captions and so on, as the condition.
        t: for each sample one time in each bin.
        seed: of the noise.
        origin: where the samples come from, for the protocol.
    """

    x0: Float[Tensor, "S *sample"]
    asked: Condition
    t: Float[Tensor, "S B"]
    seed: int
    origin: str

    @property
    def bins(self) -> int:
        return self.t.shape[1]

    @property
    def edges(self) -> list[float]:
        """The B + 1 edges of the time bins."""
        return np.linspace(0, HORIZON, self.bins + 1).tolist()

    def passes(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Pairs of a bin and the indices of up to `size` samples."""
        for number in range(self.bins):
            for rows in torch.arange(len(self.x0)).split(size):
                yield number, rows

    def num_passes(self, size: int) -> int:
        """Length of `passes`."""
        return self.bins * -(-len(self.x0) // size)

    def noise(self, rows: Tensor, number: int) -> Float[Tensor, "b *sample"]:
        """The noise of samples at a bin, seeded by each sample's index and the bin."""
        each = [torch_generator("analysis", self.seed, i, number) for i in rows.tolist()]
        return torch.stack([torch.randn(self.x0.shape[1:], generator=generator) for generator in each])


@dataclass(frozen=True)
class Shown:
    """A batch of the probe: the inputs of the model and the target of its prediction.

    Attributes:
        number: of the time bin.
        rows: indices of the samples.
    """

    number: int
    rows: Tensor
    x: Float[Tensor, "b *sample"]
    t: Float[Tensor, " b"]
    asked: Condition
    target: Float[Tensor, "b *sample"]

    def loss(self, output: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        """Mean square error of each sample, without a weight over time; a learned variance is ignored."""
        error = output[:, : self.target.shape[1]].float() - self.target
        return error.square().flatten(1).mean(1)


def shown(
    probe: Probe,
    process: Process,
    size: int,
    device: torch.device,
    on_pass: Callable[[], object] = lambda: None,
) -> Iterator[Shown]:
    """All batches of a probe, of up to `size` samples each; calls `on_pass` after each."""
    for number, rows in probe.passes(size):
        x0, noise, t = probe.x0[rows], probe.noise(rows, number), probe.t[rows, number]
        x, target = process.corrupt(x0, noise, t), process.target(x0, noise, t)
        asked = probe.asked.take(rows)
        yield Shown(number, rows, *(part.to(device) for part in (x, t, asked, target)))  # type: ignore[arg-type]
        on_pass()


def make_probe(
    model: DiTMoE, modality: Modality, process: Process, split: str, samples: int, bins: int, seed: int
) -> Probe:
    """A probe of random samples of a split, or of training samples if the modality cannot encode others."""
    x0, asked, origin = held_out(model.conditioning, modality, split, samples, seed)
    edges = torch.arange(bins) / bins
    jitter = [torch.rand(bins, generator=torch_generator("times", seed, i)) for i in range(len(x0))]
    t = HORIZON * (edges + torch.stack(jitter) / bins)
    return Probe(x0, asked, t.clamp(max=process.last), seed, origin)


def held_out(
    conditioning: Conditioning, modality: Modality, split: str, samples: int, seed: int
) -> tuple[Tensor, Condition, str]:
    """Samples, their conditions, and a description of their origin.

    Raises:
        ValueError: if the split has fewer than 2 samples.
    """
    if not (isinstance(modality, Metric) and isinstance(modality, Encoding)):
        x0, asked = modality.batch(samples, seed, 0)
        return x0, conditioning.read(asked), "training samples: this modality encodes no others (`Encoding`)"
    reference = modality.reference(split)
    if len(reference) < 2:
        raise ValueError(f"split={split} must hold at least 2 samples, got {len(reference)}")
    chosen = np.sort(np.random.default_rng([seed, 1]).permutation(len(reference))[:samples])
    x0 = modality.encode(reference.data[chosen]).cpu().float()
    if reference.asked is not None:
        asked = reference.asked.take(torch.from_numpy(chosen))
    elif reference.labels is not None:
        asked = conditioning.read(torch.as_tensor(reference.labels[chosen]))
    else:
        asked = conditioning.nothing(len(chosen))
    return x0, asked, f"{len(chosen)} of {len(reference)} of split {split}"
