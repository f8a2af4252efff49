"""Device mesh of a model: replication, sharding (FSDP2), expert parallelism, and combinations of them."""

import copy
import warnings
from collections.abc import Iterable
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ditmoe.distributed import Ranks, launch, local
from ditmoe.model import DiTMoE
from ditmoe.moe import Experts, MoE, Router, Rows
from ditmoe.outside import device as own_device
from ditmoe.parallel.expert_parallel import Exchange


class Mesh:
    """A grid of replicate x shard x expert devices, each of which processes its own samples.

        experts          E / expert on each device, each weight sharded over `shard` devices, in `replicate` copies
        everything else  sharded over shard x expert devices, in `replicate` copies

    Weights, gradients, moments and EMA are distributed alike. The `expert` axis varies fastest over the ranks, then the
    `shard` axis, so that tokens are exchanged within a machine if it has enough devices. The implementation is torch's:
    fully_shard (FSDP2, with HSDP for copies) on DTensors, and all_to_all_single for tokens. With one process all
    methods are local and nothing is distributed.

    Args:
        replicate, shard, expert: sizes; one of the first two may be None, to be inferred from the number of processes.
        ranks: the processes; None: all that torchrun started.

    Raises:
        ValueError: if the product of the sizes is not the number of processes.
    """

    def __init__(
        self, replicate: int | None = 1, shard: int | None = None, expert: int = 1, ranks: Ranks | None = None
    ) -> None:
        self.ranks = launch.ranks() if ranks is None else ranks
        self.world, self.rank = self.ranks.size, self.ranks.rank
        self.device: torch.device | None = None
        self.replicate, self.shard, self.expert = sizes(self.world, replicate, shard, expert)
        if self.world > 1:
            device = own_device().type
            self.device = torch.device(device)
            names = ("replicate", "shard", "expert")
            self.grid = dist.init_device_mesh(
                device, (self.replicate, self.shard, self.expert), mesh_dim_names=names
            )
            parts = self.shard * self.expert
            if self.replicate == 1:
                self.dense = dist.init_device_mesh(device, (parts,), mesh_dim_names=("parts",))
            else:
                dense = (self.replicate, parts)
                self.dense = dist.init_device_mesh(device, dense, mesh_dim_names=("copies", "parts"))

    def __str__(self) -> str:
        return f", {self.replicate} x {self.shard} x {self.expert} processes" if self.world > 1 else ""

    def check_batch(self, name: str, size: int) -> None:
        """Raises ValueError unless the batch size, which is option `name`, is a multiple of the number of ranks."""
        if size % self.world:
            raise ValueError(f"{name} must be a multiple of the {self.world} processes, got {size}")

    def own(self, x: Tensor) -> Tensor:
        """This rank's samples of a batch."""
        return x if self.world == 1 else x.chunk(self.world)[self.rank]

    def spread(self, model: Any, dtype: torch.dtype | None = None) -> None:
        """Distribute a model over the mesh, with the weights and buffers of rank 0.

        Args:
            model: the same architecture on all ranks; on ranks other than 0 it may be on the meta device.
            dtype: of the gathered weights, except those of routers; gradients are reduced in float32.

        Raises:
            ValueError: if the experts cannot be divided evenly, or need more than their rows.
        """
        if self.world == 1:
            return
        whole = copy.deepcopy(model.state_dict()) if self.rank == 0 else {}
        for module in model.modules():
            if hasattr(module, "ranks"):  # routers, and masks
                module.ranks = self.ranks
            if isinstance(module, MoE) and self.expert > 1:
                self._spread_experts(module)
        self._shard(model, dtype)
        _fill(model, whole, self.dense.device_type)

    def _spread_experts(self, layer: MoE) -> None:
        from torch.distributed.tensor import Shard, distribute_tensor

        experts = layer.experts
        if not experts.spreadable:
            raise ValueError(
                f"mesh.expert must be 1 for the router {type(layer.router).__name__}, whose experts may need more than "
                f"the rows that are sent to them (`spreadable`), got {self.expert}; use mesh.shard"
            )
        if len(experts.up) % self.expert:
            raise ValueError(
                f"mesh.expert must divide the {len(experts.up)} experts of a layer, got {self.expert}"
            )
        for name, p in list(experts.named_parameters()):
            spread = distribute_tensor(p.detach(), self.grid["expert"], [Shard(0)], src_data_rank=None)
            setattr(experts, name, nn.Parameter(spread))
        experts.exchange = Exchange(self.grid["expert"].get_group())

    def _shard(self, model: DiTMoE, dtype: torch.dtype | None) -> None:
        """Apply fully_shard bottom up: experts, routers (if others are in low precision), blocks, the model."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        from torch.distributed.tensor import Shard

        _let_fsdp_see(Rows, *{module.routing for module in model.modules() if isinstance(module, Router)})
        # The warning is about views, none of which is changed in place here.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")
        exact = MixedPrecisionPolicy(cast_forward_inputs=False)
        low = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        apart = self.grid["shard"] if self.replicate == 1 else self.grid["replicate", "shard"]

        def along(p: nn.Parameter) -> Any:  # axis 0 is distributed over `expert` already
            return Shard(1 if p.ndim > 1 and p.shape[1] % self.shard == 0 else 0)

        for module in model.modules():
            if isinstance(module, Experts) and self.expert > 1:
                fully_shard(module, mesh=apart, mp_policy=low, shard_placement_fn=along)
            elif isinstance(module, Router) and dtype is not None:
                fully_shard(module, mesh=self.dense, mp_policy=exact)
        for block in model.blocks:
            fully_shard(block, mesh=self.dense, mp_policy=low)
        # The root reshards, too; otherwise swapping in its EMA after a preview would copy gathered weights in vain.
        fully_shard(model, mesh=self.dense, mp_policy=exact, reshard_after_forward=True)

    def compile(self, model: DiTMoE, mode: str | None = None) -> Any:
        """The compiled model: compiled as a whole, or block by block if blocks are gathered one at a time."""
        if self.world == 1:
            return torch.compile(model, mode=mode)
        for block in model.blocks:
            block.compile(mode=mode)
        return model

    def sum_copies(self, model: nn.Module, last: bool) -> None:
        """Set whether the next backward pass sums gradients over the copies; only the last one of a step does.

        Args:
            last: whether the pass is the last of its step.
        """
        if self.world > 1:
            model.set_requires_all_reduce(last)  # type: ignore[operator]

    def groups(self, parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
        """Parameters grouped by device mesh, since fused optimiser kernels do not accept several meshes at once."""
        by_way: dict[Any, list[nn.Parameter]] = {}
        for p in parameters:
            by_way.setdefault(getattr(p, "device_mesh", None), []).append(p)
        return list(by_way.values())

    def gradient_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Norm of the whole gradient, with replicated values counted once.

        First divides the gradients of distributed experts by `expert`, in place, which makes them means over all ranks:
        fully_shard takes the mean over the ranks that own the same experts, while the tokens that other ranks sent have
        been summed.
        """
        if self.world == 1:
            return gradient_norm(list(parameters))
        squares = torch.zeros((), device=self.dense.device_type)
        for p in parameters:
            if p.grad is None:
                continue
            gradient = local(p.grad)
            if _is_spread(p):
                gradient.div_(self.expert)
            squares += gradient.float().square().sum() / copies(p)
        dist.all_reduce(squares)
        return squares.sqrt()


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Norm of the whole gradient on one process."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def sizes(world: int, replicate: int | None, shard: int | None, expert: int) -> tuple[int, int, int]:
    """The three sizes of the mesh, with the one that is None inferred from the number of processes.

    Raises:
        ValueError: if a size is invalid, or their product is not the number of processes.
    """
    given = {"replicate": replicate, "shard": shard, "expert": expert}
    if expert is None or (replicate is None and shard is None):
        raise ValueError(
            "only one of mesh.replicate and mesh.shard may be null, and mesh.expert must not be, "
            f"got {', '.join(f'{name}={size}' for name, size in given.items())}"
        )
    for name, size in given.items():
        if size is not None and size < 1:
            raise ValueError(f"mesh.{name} must be at least 1, got {size}")
    known = prod(size for size in given.values() if size is not None)
    left = world // known
    if known * left != world or (None not in given.values() and left != 1):
        raise ValueError(
            f"mesh.replicate x shard x expert must be the number of processes that torchrun started, {world}, "
            f"got {' x '.join('?' if size is None else str(size) for size in given.values())}"
        )
    return tuple(left if size is None else size for size in given.values())  # type: ignore[return-value]


def copies(p: Any) -> int:
    """Number of ranks that hold the same part of a parameter."""
    pairs = zip(p.placements, p.device_mesh.shape, strict=True)
    return prod(size for placement, size in pairs if placement.is_replicate())


def _is_spread(p: Any) -> bool:
    return "expert" in (p.device_mesh.mesh_dim_names or ())


def _fill(model: nn.Module, whole: dict[str, Tensor], device: str) -> None:
    """Load the weights and buffers of rank 0 into a distributed model, tensor by tensor."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    if any(p.is_meta for p in model.parameters()):
        model.to_empty(device=device)
    state: dict[str, Any] = dict(whole)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)


def _let_fsdp_see(*kinds: type) -> None:
    """Register dataclasses as pytrees, in which fully_shard finds tensors to know when gradients are complete."""
    from torch.utils import _pytree

    for kind in kinds:
        if "__dataclass_fields__" not in vars(kind):  # fields of a base class would hide those that it adds
            raise ValueError(
                f"{kind.__name__} must itself be a dataclass, so that FSDP finds its tensors, got a subclass of one"
            )
        if kind not in _pytree.SUPPORTED_NODES:
            _pytree.register_dataclass(kind)
