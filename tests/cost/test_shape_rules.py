"""Shapes worked out without torch's rules: each is what the operation itself gives on a CPU."""

import pytest
import torch

from ditmoe.cost import shape_rules

aten = torch.ops.aten
x, y, row = torch.randn(2, 6, 4), torch.randn(2, 4, 3), torch.randn(4)
flags = torch.zeros(6, 4, dtype=torch.bool)
image, at, table = torch.randn(1, 3, 9, 8), torch.tensor([[0, 1], [1, 0]]), torch.randn(5, 4)
turned, wide = x.permute(2, 0, 1), row.expand(6, 4)
CASES = [
    (aten.mul.Tensor, (x, row)),
    (aten.mul.Tensor, (torch.randn(3, 1, 1, 6, 1), flags)),
    (aten.add.Tensor, (turned, 1)),
    (aten.add.Tensor, (wide, turned[0].T[:, :1])),
    (aten.div.Tensor, (at, 2)),
    (aten.floor_divide.default, (at, torch.tensor(2))),
    (aten.gt.Scalar, (x, 0.5)),
    (aten.where.self, (flags, x, row)),
    (aten.silu.default, (turned,)),
    (aten.mm.default, (x[0], y[0])),
    (aten.bmm.default, (x, y)),
    (aten.addmm.default, (torch.randn(3), x[0], y[0])),
    (
        aten.convolution.default,
        (image, torch.randn(5, 3, 3, 2), None, [2, 1], [1, 0], [1, 2], False, [0, 0], 1),
    ),
    (
        aten.convolution.default,
        (image, torch.randn(3, 5, 3, 2), None, [2, 1], [1, 0], [1, 1], True, [0, 0], 1),
    ),
    (aten.binary_cross_entropy_with_logits.default, (x, x.sigmoid())),
    (aten.binary_cross_entropy_with_logits.default, (x, x.sigmoid(), None, None, 0)),
    (aten.searchsorted.Tensor, (row.sort()[0], x)),
    (aten.sum.dim_IntList, (flags, [0, -1])),
    (aten.sum.dim_IntList, (x, [1], True)),
    (aten.mean.dim, (x, None)),
    (aten.logsumexp.default, (x, [-1], True)),
    (aten.linalg_vector_norm.default, (x, 2, [-1])),
    (aten.native_layer_norm.default, (x, [4], None, None, 1e-5)),
    (aten._softmax.default, (turned, -1, False)),
    (aten.cumsum.default, (flags, 0)),
    (aten.index_add.default, (x, 1, at[0], x[:, :2])),
    (aten.clone.default, (turned,)),
    (aten.flip.default, (x, [0])),
    (aten.roll.default, (x, [1], [0])),
    (aten.ones_like.default, (turned,)),
    (aten.linalg_cross.default, (y, y[:1])),
    (aten.index.Tensor, (x, [None, at])),
    (aten.index.Tensor, (x, [at, at[:1]])),
    (aten.index.Tensor, (x, [at, None, at[0]])),
    (aten.embedding.default, (table, at)),
    (aten._embedding_bag.default, (table, at[0], torch.tensor([0, 1, 1]), False, 0, False, row[:2], True)),
    (aten.gather.default, (x[0], 1, at)),
    (aten.topk.default, (x, 2, 1)),
    (aten.sort.default, (turned,)),
    (aten.cat.default, ([x, y.mT], 1)),
    (aten.stack.default, ([x, x], -1)),
    (aten.arange.default, (2.5,)),
    (aten.arange.start, (1, 7)),
    (aten.arange.start_step, (1, 8, 3)),
]


def on_meta(value: object) -> object:
    if isinstance(value, list):
        return [on_meta(inner) for inner in value]
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def seen(result: object) -> list[tuple]:
    """Shape, type and order in memory; bookkeeping of whole numbers has no order that matters."""
    results = [result] if isinstance(result, torch.Tensor) else list(result)  # type: ignore[call-overload]
    return [(tuple(r.shape), r.dtype, r.is_contiguous()) for r in results if r.is_floating_point()] + [
        r.dtype for r in results
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case[0]))
def test_a_rule_says_what_the_operation_gives(case: tuple) -> None:
    function, args = case
    assert seen(shape_rules.find(function)(*map(on_meta, args))) == seen(function(*args))


def test_every_rule_is_tried() -> None:
    tried = {function for function, _ in CASES}
    assert set(shape_rules.RULES) - tried <= {
        aten._to_copy.default, aten.zeros_like.default, aten.empty_like.default, aten.sort.stable,
        aten._embedding_bag_forward_only.default,
    }  # fmt: skip


def test_what_does_not_fit_is_refused() -> None:
    for function, args in ((aten.mm.default, (x[0], x[0])), (aten.mul.Tensor, (x, torch.randn(3)))):
        with pytest.raises(ValueError, match=r"must (fit|broadcast)"):
            shape_rules.find(function)(*map(on_meta, args))
