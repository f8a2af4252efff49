"""Layers against the equations of their papers, written out in NumPy, token by token, with no function of the layer's.

No reference numbers of these two exist that could be had; where others' code was run, its numbers lie in tests/golden.
"""

import numpy as np
import pytest
import torch

from tests.routers import B, D, E, N, batch, layer

K = 2


def numbers(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def layer_norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6)


def swiglu(x: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    gate, value = np.split(up @ x, 2)
    return down @ (gate / (1 + np.exp(-gate)) * value)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return a @ b / np.sqrt((a @ a) * (b @ b))


def test_diff_moe_is_its_equations() -> None:
    """y = S(h, c) + sum of the K largest softmax(W h)_e times E_e(h, c), each = h + g f((1 + a) LN(h) + b), S too.

    (b, a, g) = V ReLU(U c) + v, of each expert its own and of the shared one too (Diff-MoE, ICML 2025).
    """
    moe, (x, context) = layer("diff_moe"), batch("diff_moe")
    w, c = numbers(moe), context.c.double().numpy()
    expected = np.zeros((B, N, D))
    for b, n in np.ndindex(B, N):
        h = x[b, n].double().numpy()

        def expert(
            u: np.ndarray, v: np.ndarray, bias: np.ndarray, up: np.ndarray, down: np.ndarray, b=b, h=h
        ) -> np.ndarray:
            shift, scale, gate = np.split(v @ np.maximum(u @ c[b], 0) + bias, 3)
            return h + gate * swiglu((1 + scale) * layer_norm(h) + shift, up, down)

        own = [w[f"shared.{name}"] for name in ("reduce.weight", "expand.weight", "expand.bias")]
        own += [w[f"shared.feed_forward.{name}.weight"] for name in ("up", "down")]
        expected[b, n] = expert(*own)
        scores = softmax(w["router.weight"] @ h)
        for e in np.argsort(-scores)[:K]:
            of = [w[f"experts.{name}"][e] for name in ("reduce", "expand", "expand_bias", "up", "down")]
            expected[b, n] += scores[e] * expert(*of)
    assert np.abs(moe(x, context)[0].detach().numpy() - expected).max() < 2e-5 * np.abs(expected).max()


def test_promoe_is_its_equations() -> None:
    """Unconditional tokens: the expert after the prototypes', weight 1. Others: e = argmax cos(h, p_e), weight that.

    L = mean over the experts i that have tokens of -log softmax_j(cos(p_i, m_j) / 0.07)_i, with m_j the mean of the
    tokens of expert j, unconditional ones left out (ProMoE, arXiv 2510.24711).
    """
    moe, (x, context) = layer("promoe").train(), batch("promoe")
    w, null = numbers(moe), context.asked.null.numpy()
    expected, clusters = np.zeros((B, N, D)), {}
    for b, n in np.ndindex(B, N):
        h = x[b, n].double().numpy()
        alike = [cosine(h, p) for p in w["router.weight"]]
        e, weight = (len(alike), 1.0) if null[b] else (int(np.argmax(alike)), max(alike))
        expected[b, n] = swiglu(h, w["shared.up.weight"], w["shared.down.weight"])
        expected[b, n] += weight * swiglu(h, w["experts.up"][e], w["experts.down"][e])
        if not null[b]:
            clusters.setdefault(e, []).append(h)
    used = sorted(clusters)
    assert null.any()
    assert len(used) > 1
    assert max(used) < E
    means = [np.mean(clusters[e], axis=0) for e in used]
    rows = [np.array([cosine(w["router.weight"][i], m) / 0.07 for m in means]) for i in used]
    loss = -np.mean([np.log(softmax(row)[i]) for i, row in enumerate(rows)])
    y, routing = moe(x, context)
    assert np.abs(y.detach().numpy() - expected).max() < 2e-5 * np.abs(expected).max()
    assert routing.losses["contrastive"].value.item() == pytest.approx(loss, rel=1e-4)
    assert routing.losses["contrastive"].coefficient == 1
