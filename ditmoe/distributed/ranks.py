"""The processes that share a batch: sums over them, and what of a spread tensor lies here."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Sums and collections over the processes among which a batch is spread; without a group, of one process.

    All of it happens at the same places on every rank, whatever its tokens, or the ranks would wait for each other. A
    loss that a router writes as `sum / share(T)`, T being the tokens of all ranks, is the loss of the whole batch once
    it is averaged over the ranks, as the gradients are.

    Attributes:
        group: a process group of torch.distributed.
    """

    group: Any = None

    @property
    def size(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)

    def separate_group(self) -> "Ranks":
        """The same ranks with collectives of their own on the host, for another thread."""
        return self if self.group is None else Ranks(dist.new_group(backend="gloo"))

    def total(self, x: Shaped[Tensor, "*n"]) -> Shaped[Tensor, "*n"]:
        """Sum over the ranks, without gradient."""
        if self.group is None:
            return x
        summed = x.detach().clone()
        dist.all_reduce(summed, group=self.group)
        return summed

    def mean(self, x: Float[Tensor, "*n"], weight: float = 1.0) -> Float[Tensor, "*n"]:
        """Mean over the ranks, each with a weight of its own, without gradient; what weighs nothing is left out."""
        if self.size == 1:
            return x
        own = F.pad(weight * x.flatten(), (0, 1), value=weight) if weight else x.new_zeros(x.numel() + 1)
        total = self.total(own)
        return total[:-1].view_as(x) / total[-1]

    def any(self, flag: bool) -> bool:
        """Whether it is true on one of the ranks."""
        return bool(self.total(torch.tensor(int(flag)))) if self.size > 1 else flag

    def share(self, tokens: Any) -> Any:
        """Of a number summed over the ranks, what falls to each on average."""
        return tokens / self.size if self.size > 1 else tokens

    def gather(self, x: Shaped[Tensor, "T n"]) -> tuple[Shaped[Tensor, "T_all n"], int]:
        """The rows of all ranks in their order, without gradient, and where one's own begin; numbers may differ."""
        if self.group is None:
            return x, 0
        counts = self.counts(len(x), x.device)
        padded = x.new_zeros(max(counts), x.shape[1])
        padded[: len(x)] = x.detach()
        rows = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(rows, padded, group=self.group)
        kept = [row[:count] for row, count in zip(rows, counts, strict=True)]
        return torch.cat(kept), sum(counts[: self.rank])

    def counts(self, own: int, device: torch.device) -> list[int]:
        """A number of each rank."""
        if self.group is None:
            return [own]
        sent = torch.tensor([own], device=device)
        numbers = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(numbers, sent, group=self.group)
        return torch.cat(numbers).tolist()

    def collect(self, x: Any) -> list[Any] | None:
        """What each rank has, on the first; None on the others."""
        if self.group is None:
            return [x]
        parts = [None] * self.size
        dist.gather_object(x, parts if self.rank == 0 else None, group=self.group)
        return parts if self.rank == 0 else None

    def broadcast(self, x: Any) -> Any:
        """What the first rank has, on all."""
        if self.group is None:
            return x
        shared = [x]
        dist.broadcast_object_list(shared, group=self.group, group_src=0)
        return shared[0]

    def all_or_raise(self, work: Callable[[], None]) -> None:
        """Do something on each rank that all must succeed in.

        Raises:
            OSError, ValueError: on all of them, if one of them had one.
        """
        own = None
        try:
            work()
        except (OSError, ValueError) as error:
            own = error
        if (told := self.first_error(own)) is not None:
            raise own or OSError(told)

    @contextmanager
    def of_first(self, entered: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
        """Within a context that the first rank enters for all, such as a lock.

        Raises:
            ValueError, OSError: on all of them, if it cannot.
        """
        with ExitStack() as stack:
            refused = None
            try:
                if self.rank == 0:
                    stack.enter_context(entered())
            except (ValueError, OSError) as error:
                refused = error
            if (told := self.first_error(refused)) is not None:
                raise refused or ValueError(told)
            yield

    def first_error(self, error: Exception | None) -> str | None:
        """The first error that one of the ranks has; they all must ask."""
        own = None if error is None else str(error)
        if self.group is None:
            return own
        errors: list[Any] = [None] * self.size
        dist.all_gather_object(errors, own, group=self.group)
        return next((error for error in errors if error is not None), None)

    def drawn(self, draw: Callable[..., Tensor], x: Shaped[Tensor, "T *n"]) -> Float[Tensor, "T *n"]:
        """Random numbers for the rows of all ranks, by `torch.randn` or another, of which these are one's own.

        As one process would draw them, if all have torch's generator in the same state.
        """
        counts = self.counts(len(x), x.device)
        dtype = x.dtype if x.is_floating_point() else None
        drawn = draw(sum(counts), *x.shape[1:], device=x.device, dtype=dtype)
        return drawn[(first := sum(counts[: self.rank])) : first + len(x)]


ALONE = Ranks()


def local(x: Any) -> Tensor:
    """The part of a spread tensor (a DTensor) that is on this rank; any other tensor as it is."""
    return x.to_local() if is_spread(x) else x


def whole(x: Any) -> Any:
    """A spread tensor with the parts of all ranks, who all must ask for it; anything else as it is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def is_spread(x: Any) -> bool:
    """Whether a tensor is a DTensor, of which each rank has its part or a copy."""
    return hasattr(x, "to_local")


@torch.no_grad()
def put(target: Any, value: Tensor) -> None:
    """Give a tensor, spread or whole, the values of a whole one that each rank has."""
    if is_spread(target):
        from torch.distributed.tensor import distribute_tensor

        value = value.to(target.device, target.dtype)
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None).to_local()
    local(target).copy_(value)
