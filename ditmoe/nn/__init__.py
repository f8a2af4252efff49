"""Generic building blocks of transformers: attention, layers, and the layout of a batch's tokens."""

from ditmoe.nn.attention import Attention, CrossAttention, attend, attend_within
from ditmoe.nn.attention_groups import Groups
from ditmoe.nn.block_cache import FirstBlockCache, check_threshold
from ditmoe.nn.depthwise import depthwise
from ditmoe.nn.layers import FeedForward, Modulation, TimestepEmbedding, modulate, normalize
from ditmoe.nn.layout import Layout, cells
from ditmoe.nn.lora import LoRA
from ditmoe.nn.on_device import from_host
from ditmoe.nn.rotary import rotary_angles

__all__ = [
    "Attention",
    "CrossAttention",
    "FeedForward",
    "FirstBlockCache",
    "Groups",
    "Layout",
    "LoRA",
    "Modulation",
    "TimestepEmbedding",
    "attend",
    "attend_within",
    "cells",
    "check_threshold",
    "depthwise",
    "from_host",
    "modulate",
    "normalize",
    "rotary_angles",
]
