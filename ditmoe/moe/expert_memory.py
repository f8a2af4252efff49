"""Where the matrices of routed experts are, if not in parameters: quantised beside the model, or on the host."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditmoe.nn.quantized import Quantized


@dataclass
class Traffic:
    """What offloading costs a model, counted where experts are fetched.

    Attributes:
        room: bytes of experts that may be on the device at once, of all layers.
        held, most: bytes of experts that are there, and were at once.
        moved: bytes fetched from the host.
        chosen, fetched: experts that were to work, once for each layer and pass, and those of them that had to be
            fetched.
        passes: through a layer.
    """

    room: int = 0
    held: int = 0
    most: int = 0
    moved: int = 0
    chosen: int = 0
    fetched: int = 0
    passes: int = 0


class QuantizedExperts(nn.Module):
    """The experts of one layer on the device, in a format of `ditmoe.nn.quantized`."""

    at_once: int | None = None
    """Experts whose matrices are needed together; None: as many as serves."""

    def __init__(self, up: Quantized, down: Quantized) -> None:
        super().__init__()
        for name, quantized in {"up": up, "down": down}.items():
            self.register_buffer(name, quantized.values, persistent=False)
            self.register_buffer(f"{name}_scale", quantized.scale, persistent=False)

    def matrices(self) -> tuple[Quantized, Quantized]:
        """Of the first and of the second layer of all experts."""
        return Quantized(self.up, self.up_scale), Quantized(self.down, self.down_scale)  # type: ignore[arg-type]

    def chosen(self, counts: Sequence[int], device: torch.device) -> tuple[Quantized, Quantized]:
        """The same: all are at hand."""
        return self.matrices()


class OffloadedExperts(nn.Module):
    """The experts of one layer on the host, of which those that rows go to are fetched, one after the other.

    The device keeps the latest ones, as many as there is room for. An expert that has to make room is the one that is
    unused for the longest; of those that a pass needs, the one whose turn came last: where a pass needs more of them
    than there is room for, as in large batches, all but one place then keep theirs from pass to pass, and a cache that
    drops the least recently used one would keep none.

    Args:
        room: bytes that this layer's experts may take on the device; at least those of one.
        traffic: counts of the whole model, to be added to.
    """

    at_once: int | None = 1

    def __init__(self, up: Quantized, down: Quantized, room: int, traffic: Traffic) -> None:
        super().__init__()
        # No buffers: they do not move with the model.
        self.host = list(zip(up.unbind(), down.unbind(), strict=True))
        self.shapes = up.shape, down.shape
        self.size = sum(quantized.nbytes for quantized in self.host[0])
        self.capacity = room // self.size
        self.traffic = traffic
        self.held: OrderedDict[int, tuple[Quantized, Quantized]] = OrderedDict()
        self.wanted: list[int] = []
        self.waiting: set[int] = set()
        self.device = torch.device("cpu")

    def matrices(self) -> tuple["Fetching", "Fetching"]:
        """Of the first and of the second layer of all experts, fetched one by one when they are asked for."""
        return Fetching(self, 0), Fetching(self, 1)

    def chosen(self, counts: Sequence[int], device: torch.device) -> tuple["Fetching", "Fetching"]:
        """The matrices, for a pass in which each expert has so many rows on a device."""
        if device != self.device:
            self.traffic.held -= len(self.held) * self.size
            self.held.clear()
            self.device = device
        self.wanted = [e for e, count in enumerate(counts) if count]
        self.waiting = set(self.wanted)
        self.traffic.passes += 1
        self.traffic.chosen += len(self.wanted)
        return self.matrices()

    def fetch(self, e: int) -> tuple[Quantized, Quantized]:
        """Both matrices of an expert, on the device."""
        self.waiting.discard(e)
        if e in self.held:
            self.held.move_to_end(e)
            return self.held[e]
        while len(self.held) >= self.capacity:
            self.traffic.held -= self.size
            del self.held[self._last_needed()]
        up, down = (quantized.on(self.device, copy=True) for quantized in self.host[e])
        self.held[e] = up, down
        counted = self.traffic
        counted.held += self.size
        counted.moved += self.size
        counted.fetched += 1
        counted.most = max(counted.most, counted.held)
        return up, down

    def _last_needed(self) -> int:
        """Which of those that are held is to make room."""
        if idle := [e for e in self.held if e not in self.wanted]:
            return idle[0]
        if done := [e for e in self.held if e not in self.waiting]:
            return done[-1]
        return max(self.held)  # experts work in ascending order


@dataclass(frozen=True)
class Fetching:
    """One of the two matrices of all experts of a layer that are on the host, as `Quantized` is of those at hand."""

    layer: OffloadedExperts
    which: int

    @property
    def shape(self) -> torch.Size:
        """Of the stack."""
        return self.layer.shapes[self.which]

    def unbind(self) -> "Fetching":
        """One by one, each fetched when it is taken."""
        return self

    def __getitem__(self, e: int) -> Quantized:
        return self.layer.fetch(e)[self.which]

    def __iter__(self) -> Iterator[Quantized]:
        return (self[e] for e in range(self.shape[0]))


Matrices = Tensor | Quantized | Fetching
"""Of all experts of a layer, wherever they are."""
