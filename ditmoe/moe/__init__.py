"""Mixture of experts: who goes where (routing), the experts, the layer around them, and its losses."""

from ditmoe.moe.balance import balance_loss, load
from ditmoe.moe.experts import Experts
from ditmoe.moe.layer import MoE
from ditmoe.moe.routing import Router, Routing, TokenChoice

__all__ = ["Experts", "MoE", "Router", "Routing", "TokenChoice", "balance_loss", "load"]
