"""Collectives over the processes that share a batch, and access to the parts of distributed tensors."""

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
    """Collectives over the processes that share a batch; without a group, of a single process.

    Every rank must call the same methods in the same order, whatever its tokens; otherwise ranks wait for each other
    forever. A router's loss of the form `sum / share(T)`, where T is the number of tokens of all ranks, equals the loss
    of the whole batch after averaging over ranks, as gradients are.

    Attributes:
        group: a process group of torch.distributed; None: a single process.
    """

    group: Any = None

    @property
    def size(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)

    def separate_group(self) -> "Ranks":
        """The same ranks with a separate gloo group, for collectives from another thread."""
        return self if self.group is None else Ranks(dist.new_group(backend="gloo"))

    def total(self, x: Shaped[Tensor, "*n"]) -> Shaped[Tensor, "*n"]:
        """Sum over the ranks, without gradient."""
        if self.group is None:
            return x
        summed = x.detach().clone()
        dist.all_reduce(summed, group=self.group)
        return summed

    def mean(self, x: Float[Tensor, "*n"], weight: float = 1.0) -> Float[Tensor, "*n"]:
        """Mean over the ranks, weighted by each rank's `weight`, without gradient; ranks with weight 0 are left out."""
        if self.size == 1:
            return x
        own = F.pad(weight * x.flatten(), (0, 1), value=weight) if weight else x.new_zeros(x.numel() + 1)
        total = self.total(own)
        return total[:-1].view_as(x) / total[-1]

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank."""
        return bool(self.total(torch.tensor(int(flag)))) if self.size > 1 else flag

    def share(self, tokens: Any) -> Any:
        """A number summed over the ranks, divided by the number of ranks."""
        return tokens / self.size if self.size > 1 else tokens

    def gather(self, x: Shaped[Tensor, "T n"]) -> tuple[Shaped[Tensor, "T_all n"], int]:
        """The rows of all ranks in rank order, without gradient, and the index of this rank's first row.

        The number of rows may differ between ranks.
        """
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
        """The numbers of all ranks."""
        if self.group is None:
            return [own]
        sent = torch.tensor([own], device=device)
        numbers = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(numbers, sent, group=self.group)
        return torch.cat(numbers).tolist()

    def collect(self, x: Any) -> list[Any] | None:
        """The objects of all ranks on rank 0; None on the others."""
        if self.group is None:
            return [x]
        parts = [None] * self.size
        dist.gather_object(x, parts if self.rank == 0 else None, group=self.group)
        return parts if self.rank == 0 else None

    def broadcast(self, x: Any) -> Any:
        """The object of rank 0, on all ranks."""
        if self.group is None:
            return x
        shared = [x]
        dist.broadcast_object_list(shared, group=self.group, group_src=0)
        return shared[0]

    def all_or_raise(self, work: Callable[[], None]) -> None:
        """Run a function on each rank.

        Raises:
            OSError, ValueError: on all ranks, if it raises one of these on any rank.
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
        """Hold a context, such as a lock, that only rank 0 enters.

        Raises:
            ValueError, OSError: on all ranks, if rank 0 cannot enter it.
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
        """The message of the first error in rank order; None without one. All ranks must call this."""
        own = None if error is None else str(error)
        if self.group is None:
            return own
        errors: list[Any] = [None] * self.size
        dist.all_gather_object(errors, own, group=self.group)
        return next((error for error in errors if error is not None), None)

    def drawn(self, draw: Callable[..., Tensor], x: Shaped[Tensor, "T *n"]) -> Float[Tensor, "T *n"]:
        """Random numbers for this rank's rows, selected from a draw for the rows of all ranks.

        Equal to the draw of a single process if torch's generators have the same state on all ranks.

        Args:
            draw: such as `torch.randn`.
        """
        counts = self.counts(len(x), x.device)
        dtype = x.dtype if x.is_floating_point() else None
        drawn = draw(sum(counts), *x.shape[1:], device=x.device, dtype=dtype)
        return drawn[(first := sum(counts[: self.rank])) : first + len(x)]


ALONE = Ranks()


def local(x: Any) -> Tensor:
    """The part of a distributed tensor (a DTensor) on this rank; any other tensor unchanged."""
    return x.to_local() if is_spread(x) else x


def whole(x: Any) -> Any:
    """The full value of a distributed tensor; any other value unchanged. All ranks must call this."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def is_spread(x: Any) -> bool:
    """Whether a tensor is a DTensor, of which each rank holds a part or a copy."""
    return hasattr(x, "to_local")


@torch.no_grad()
def put(target: Any, value: Tensor) -> None:
    """Copy into a tensor, distributed or not, the values of a full tensor that every rank has."""
    if is_spread(target):
        from torch.distributed.tensor import distribute_tensor

        value = value.to(target.device, target.dtype)
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None).to_local()
    local(target).copy_(value)
