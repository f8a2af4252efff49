"""What a plan says that ranks send is what they do send."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from ditmoe import DiTMoE
from ditmoe.cost import Measured, Spread, count, traffic
from ditmoe.moe import ExpertChoice
from ditmoe.parallel import Mesh
from ditmoe.training.computing import recompute_blocks
from modalities.image import LatentTokens
from tests.many import together

SIZE, SHAPE = 2, (4, 16, 16)
CASES = [
    ((1, 1, 4), "fp32", False), ((1, 2, 2), "bf16", True), ((2, 1, 2), "bf16", False), ((4, 1, 1), "fp32", False),
    ((1, 4, 1), "bf16", False), ((2, 2, 1), "fp32", True),
]  # fmt: skip


def model() -> DiTMoE:
    router = partial(ExpertChoice, num_experts=8, capacity=2.0)  # used evenly, as a plan takes experts to be
    return DiTMoE(LatentTokens(48, 4, 2), 5, 48, 3, 4, router=router, moe_layers=[1, 2])


def measured() -> list[dict[str, float]]:
    found = []
    for sizes, precision, recompute in CASES:
        net, mesh, dtype = model(), Mesh(*sizes), torch.bfloat16 if precision == "bf16" else None
        if recompute:
            recompute_blocks(net)
        mesh.spread(net, dtype)
        x, t, y = torch.randn(SIZE, *SHAPE), torch.rand(SIZE), torch.zeros(SIZE, dtype=torch.int64)
        with Measured() as meter:
            with torch.autocast("cpu", dtype) if dtype else nullcontext():
                out = net(x, t, y)[0]
            out.float().square().mean().backward()
        found.append(dict(meter.sent))
    return found


def test_ranks_send_what_was_planned() -> None:
    counts = count(model, SHAPE)
    for (sizes, precision, recompute), sent in zip(CASES, together(measured, 4), strict=True):
        planned = traffic(counts, Spread(*sizes), precision=precision, batch_size=SIZE, recompute=recompute)
        for kind, number in planned.items():
            assert sent[kind] == pytest.approx(number, rel=0.01), (sizes, precision, kind)
