"""Storage of routed experts' matrices outside of parameters: quantised on the device, or offloaded to the host."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditmoe.nn.quantized import Quantized


@dataclass
class Traffic:
    """Counters of a model's offloading traffic.

    Attributes:
        room: most bytes of experts on the device, over all layers.
        held, most: bytes of experts on the device, now and at the peak.
        moved: bytes fetched from the host.
        chosen, fetched: experts in use, summed over layers and passes, and those of them that had to be fetched.
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
    """Most experts whose matrices are used at a time; None: as many as is fastest."""

    def __init__(self, up: Quantized, down: Quantized) -> None:
        super().__init__()
        for name, quantized in {"up": up, "down": down}.items():
            self.register_buffer(name, quantized.values, persistent=False)
            self.register_buffer(f"{name}_scale", quantized.scale, persistent=False)

    def matrices(self) -> tuple[Quantized, Quantized]:
        """The matrices of the first and of the second layer of all experts."""
        return Quantized(self.up, self.up_scale), Quantized(self.down, self.down_scale)  # type: ignore[arg-type]

    def chosen(self, counts: Sequence[int], device: torch.device) -> tuple[Quantized, Quantized]:
        """The same, since all are on the device."""
        return self.matrices()


class OffloadedExperts(nn.Module):
    """The experts of one layer on the host; those that have rows are fetched one by one.

    The device caches as many as there is room for. Evicted is the least recently used of the experts that the pass does
    not need, else the last one used in this pass: if a pass needs more experts than fit, as with large batches, all
    but one slot then keep their expert from pass to pass, where plain LRU would keep none.

    Args:
        room: bytes of this layer's experts allowed on the device; at least one expert.
        traffic: counters of the whole model, updated here.
    """

    at_once: int | None = 1

    def __init__(self, up: Quantized, down: Quantized, room: int, traffic: Traffic) -> None:
        super().__init__()
        # Not buffers, which would move with the model.
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
        """The matrices of the first and of the second layer of all experts, fetched one by one on access."""
        return Fetching(self, 0), Fetching(self, 1)

    def chosen(self, counts: Sequence[int], device: torch.device) -> tuple["Fetching", "Fetching"]:
        """The matrices, for a pass with `counts` rows for each expert on a device."""
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
        """The cached expert to evict."""
        if idle := [e for e in self.held if e not in self.wanted]:
            return idle[0]
        if done := [e for e in self.held if e not in self.waiting]:
            return done[-1]
        return max(self.held)  # experts are used in ascending order


@dataclass(frozen=True)
class Fetching:
    """One of the two stacks of matrices of a layer's offloaded experts, with the interface of `Quantized`."""

    layer: OffloadedExperts
    which: int

    @property
    def shape(self) -> torch.Size:
        """The shape of the stack."""
        return self.layer.shapes[self.which]

    def unbind(self) -> "Fetching":
        """Iterable over single matrices, each fetched on access."""
        return self

    def __getitem__(self, e: int) -> Quantized:
        return self.layer.fetch(e)[self.which]

    def __iter__(self) -> Iterator[Quantized]:
        return (self[e] for e in range(self.shape[0]))


Matrices = Tensor | Quantized | Fetching
"""The matrices of all experts of a layer, wherever they are stored."""
