"""Dense models become mixtures: every routed expert starts as a copy of the dense layer (arXiv 2212.05055)."""

import copy
from collections.abc import Sequence
from functools import partial

import torch

from ditmoe.layers import Attention, FeedForward
from ditmoe.model import DiTMoE
from ditmoe.moe import Experts, MoE, TokenChoice


@torch.no_grad()
def upcycle(dense: DiTMoE, num_experts: int, top_k: int = 2, sparse: Sequence[int] | None = None) -> DiTMoE:
    """A mixture that predicts what the dense model predicts, up to rounding, and trains on from there.

    All experts of a layer are its feed-forward layer, and their weights are renormalised to sum to one, so that
    sum_k w_k f(x) = f(x) whatever the router, which starts at random, does. There are no shared experts.

    Args:
        dense: left as it is.
        num_experts: of each layer.
        top_k: experts per token.
        sparse: layers that become mixtures; None is all.

    Raises:
        ValueError: if the model has experts already, or an option does not fit.
    """
    layers = [layer for block in dense.blocks if isinstance(layer := block.feed_forward, FeedForward)]
    if len(layers) < len(dense.blocks):
        raise ValueError("the model to upcycle must be dense, but it has experts")
    hidden = dense.embed.out_features
    attention = next(module for module in dense.modules() if isinstance(module, Attention))
    ratio, activation = layers[0].down.in_features / hidden, layers[0].activation
    model = DiTMoE(
        copy.deepcopy(dense.tokens),
        dense.num_classes,
        hidden,
        len(layers),
        attention.num_heads,
        router=partial(TokenChoice, num_experts=num_experts, top_k=top_k, renormalize=True),
        sparse=sparse,
        activation=activation,
        expert_ratio=ratio,
        shared_ratio=0,
        dense_ratio=ratio,
        dense_activation=activation,
        qk_norm=isinstance(attention.q_norm, torch.nn.LayerNorm),
        time_scale=dense.timestep.scale,
    )
    weights = {k: v for k, v in dense.state_dict().items() if k in model.state_dict()}
    model.load_state_dict(weights, strict=False)
    model.tokens.load_state_dict(dense.tokens.state_dict())
    for block, layer in zip(model.blocks, layers, strict=True):
        if isinstance(block.feed_forward, MoE):
            _fill(block.feed_forward.experts, layer)
    reference = dense.embed.weight
    return model.to(reference.device, reference.dtype).train(dense.training)


def _fill(experts: Experts, layer: FeedForward) -> None:
    experts.up.copy_(layer.up.weight)
    experts.down.copy_(layer.down.weight)
    if experts.up_bias is not None and experts.down_bias is not None:
        experts.up_bias.copy_(layer.up.bias)
        experts.down_bias.copy_(layer.down.bias)
