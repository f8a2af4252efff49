"""Split the neurons of a dense layer into experts (Dense2MoE, arXiv 2510.09094)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.moe import MoE
from ditmoe.nn import FeedForward


def magnitude(dense: Mapping[str, Tensor]) -> Float[Tensor, " H"]:
    """Importance of each neuron from its weights alone: |incoming weights| |outgoing weights|."""
    up, down = dense["up.weight"], dense["down.weight"]
    return up.unflatten(0, (-1, down.shape[1])).square().sum(dim=(0, 2)).sqrt() * down.norm(dim=0)


def taylor(layer: FeedForward) -> Float[Tensor, " H"]:
    """First-order change of the loss when a neuron is removed: |sum_d w_dj dL/dw_dj| (arXiv 1611.06440).

    Uses the gradients of `down` accumulated by `backward`; equals sum_t h_tj dL/dh_tj, the first-order change when h_j
    is set to zero.

    Raises:
        ValueError: if there are no gradients.
    """
    weight = layer.down.weight
    if weight.grad is None:
        raise ValueError("the gradients of the dense layers must be there, after a backward pass, got none")
    return (weight.detach() * weight.grad).sum(dim=0).abs()


@torch.no_grad()
def split(layer: MoE, dense: Mapping[str, Tensor], importance: Float[Tensor, " H"] | None = None) -> None:
    """Distribute the neurons of a dense layer over the experts of a mixture, in place.

    The most important ones become the shared experts; the others are dealt round-robin to the routed ones, which are
    therefore alike. Surplus neurons, the least important, are dropped; if there are too few they are dealt again.
    Where the weights of a token sum to one, the routed experts are multiplied by the number of experts per token: with
    even weights, each then contributes what its neurons did.

    Args:
        dense: "up.weight", "down.weight" and their biases, if any.
        importance: of its neurons, see `taylor`; None: `magnitude`.

    Raises:
        ValueError: if the shared experts are wider than the dense layer.
    """
    experts, shared = layer.experts, layer.shared if isinstance(layer.shared, FeedForward) else None
    order = (magnitude(dense) if importance is None else importance).argsort(descending=True)
    width = 0 if shared is None else shared.down.in_features
    if width >= len(order):
        raise ValueError(
            f"model.shared_ratio must leave neurons to the routed experts: the dense layer has {len(order)}, "
            f"the shared experts {width}"
        )
    first, rest = order[:width], order[width:]
    if shared is not None:
        shared.up.weight.copy_(_rows(dense["up.weight"], first, len(order)))
        shared.down.weight.copy_(dense["down.weight"][:, first])
        if shared.up.bias is not None:
            shared.up.bias.copy_(dense["up.bias"][first])
            shared.down.bias.copy_(dense["down.bias"])
    factor = layer.router.active if layer.router.weights_sum_to_one else 1.0
    number, inner = experts.down.shape[0], experts.down.shape[2]
    dealt = rest[torch.arange(number * inner, device=rest.device) % len(rest)].view(inner, number)
    for e in range(number):
        own = dealt[:, e]
        experts.up[e].copy_(_rows(dense["up.weight"], own, len(order)))
        experts.down[e].copy_(factor * dense["down.weight"][:, own])
        if experts.up_bias is not None and experts.down_bias is not None:
            experts.up_bias[e].copy_(dense["up.bias"][own])
            experts.down_bias[e].copy_(dense["down.bias"] if shared is None else 0 * dense["down.bias"])


def _rows(up: Float[Tensor, "up D"], neurons: Int[Tensor, " n"], number: int) -> Float[Tensor, "own D"]:
    """The incoming weights of selected neurons: those of each gate, then those of the gated half."""
    return up.unflatten(0, (-1, number))[:, neurons].flatten(0, 1)
