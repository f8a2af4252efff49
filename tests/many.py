"""What the tests of many processes share: starting them without torch's start-up each time, and what they compute."""

import gc
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from ditmoe.distributed import launch
from ditmoe.moe import Context, Experts, MoE, Router
from ditmoe.parallel import Exchange
from tests.routers import batch, layer
from tests.warm import server

LIMIT = 120


def together(check: Callable[..., Any], num: int, *given: Any) -> Any:
    """What the first of `num` processes returns from `check(*given)`; all have joined as torchrun's would.

    They are forked from a server that has imported all this once.
    """
    context = server()
    receive, send = context.Pipe(duplex=False)
    port = free_port()
    processes = [
        context.Process(target=_as_rank, args=(rank, num, port, send, check, given), daemon=True)
        for rank in range(num)
    ]
    for process in processes:
        process.start()
    send.close()
    try:
        if not receive.poll(LIMIT):
            raise TimeoutError(f"{check.__name__} took more than {LIMIT} s on {num} processes")
        result, failure = pickle.loads(receive.recv_bytes())
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    assert failure is None, failure
    return result


def _as_rank(rank: int, num: int, port: int, send: Any, check: Callable[..., Any], given: tuple) -> None:
    gc.freeze()  # what the server has stays
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    try:
        with launch.processes(timeout=LIMIT / 2):
            result = check(*given)
            if rank == 0:
                # Not by shared memory, which ends with this process.
                send.send_bytes(pickle.dumps((result, None)))
            dist.barrier()
    except BaseException:
        send.send_bytes(pickle.dumps((None, f"rank {rank}: {traceback.format_exc()}")))
        sys.exit(1)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def layers(names: list[str], spread: bool) -> dict[str, dict[str, torch.Tensor]]:
    """For each router what a layer computes of a batch, all ranks together, and its gradients.

    Alone it is the plain layer. Ranks have unlike numbers of samples; with `spread` each has a part of the experts.
    """
    return {name: _layer(name, spread) for name in names}


def _layer(name: str, spread: bool) -> dict[str, torch.Tensor]:
    ranks = launch.ranks()
    moe, (x, context), out = layer(name), batch(name, size=5), {}
    own = torch.arange(5).tensor_split([4] if ranks.size == 2 else ranks.size)[ranks.rank]
    there = (getattr(context, key)[own] for key in ("t", "time", "c"))
    part = Context(
        *there, context.layout.take(own.tolist()), context.unmodulated[own], context.asked.take(own)
    )
    _split(moe, ranks, spread)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))[own]
    x = x[own].requires_grad_()
    y, routing = moe(x, part)
    losses = {key: loss.value for key, loss in routing.losses.items()}
    objective = ranks.size * (y * g).sum() + sum(losses.values(), torch.zeros(()))
    objective.backward()
    out |= {"y": y.detach(), "dx": x.grad / ranks.size}
    for key, parameter in moe.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad / ranks.size
        out[f"gradient of {key}"] = gradient
    sums = {f"loss {key}": value.detach() / ranks.size for key, value in losses.items()}
    sums |= {key: value.float() / ranks.size for key, value in routing.batch_stats.items()}
    return _merged(out, ranks, spread) | {key: ranks.total(value) for key, value in sums.items()}


def _split(moe: MoE, ranks: Any, spread: bool) -> None:
    for module in moe.modules():
        if isinstance(module, Router):
            module.ranks = ranks
        if isinstance(module, Experts) and spread and ranks.size > 1:
            module.exchange = Exchange(ranks.group)
            for key, parameter in list(module.named_parameters()):
                share = parameter.detach().chunk(ranks.size)[ranks.rank].clone()
                setattr(module, key, torch.nn.Parameter(share))


def _merged(parts: dict[str, torch.Tensor], ranks: Any, spread: bool) -> dict[str, torch.Tensor]:
    """Samples and experts of all ranks one after the other, gradients of what all have added up."""
    merged = {}
    for key, value in parts.items():
        joined = key in ("y", "dx") or (spread and key.startswith("gradient of experts"))
        flat, _ = ranks.gather(value.flatten(1)) if joined else (ranks.total(value), 0)
        merged[key] = flat.reshape(-1, *value.shape[1:]) if joined else flat
    return merged
