"""Self-attention within samples or groups of tokens, and cross-attention to the conditioning."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ditmoe.nn.attention_groups import Groups
from ditmoe.nn.layout import Layout
from ditmoe.nn.rotary import rotate


def attend(
    q: Float[Tensor, "B H N d"],
    k: Float[Tensor, "B H L d"],
    v: Float[Tensor, "B H L d"],
    mask: Bool[Tensor, "B 1 1 L"] | None = None,
) -> Float[Tensor, "B H N d"]:
    """Softmax attention, softmax(q k^T / sqrt(d)) v, over the keys where the mask is true.

    Short sequences on a CPU use explicit products: there the backward pass of the fused kernel costs more than the
    attention matrix that it avoids.
    """
    if q.device.type == "cpu" and k.shape[-2] <= 512:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return torch.softmax(scores, dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, mask)


def attend_within(
    q: Float[Tensor, "B H N d"], k: Float[Tensor, "B H N d"], v: Float[Tensor, "B H N d"], groups: Groups
) -> Float[Tensor, "B H N d"]:
    """Attention within consecutive groups of tokens.

    On CUDA a packed row uses one variable-length kernel, xformers' or, in half precision, torch's own; elsewhere, and
    for head sizes that neither supports, groups of equal length are batched.
    """
    if q.is_cuda and len(q) == 1 and len(groups.lengths) > 1:
        rows = [z[0].transpose(0, 1) for z in (q, k, v)]
        if (y := _attend_varying(rows[0], rows[1], rows[2], groups)) is not None:
            return y.transpose(0, 1)[None]
    parts = []
    sizes = [n * length for n, length in groups.blocks]
    for (n, length), *part in zip(groups.blocks, *(z.split(sizes, dim=-2) for z in (q, k, v)), strict=True):
        if n == 1:
            parts.append(attend(*part))
        else:
            several = (z.unflatten(-2, (n, length)).transpose(1, 2).flatten(0, 1) for z in part)
            parts.append(attend(*several).unflatten(0, (len(q), n)).transpose(1, 2).flatten(-3, -2))
    return torch.cat(parts, dim=-2)


def _attend_varying(
    q: Float[Tensor, "T H d"], k: Float[Tensor, "T H d"], v: Float[Tensor, "T H d"], groups: Groups
) -> Float[Tensor, "T H d"] | None:
    """The same on CUDA in one call; None if no kernel supports it."""
    try:
        from xformers.ops import fmha, memory_efficient_attention

        mask = fmha.BlockDiagonalMask.from_seqlens(groups.lengths)
        return memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask)[0]
    except (ImportError, NotImplementedError):  # not installed, or not for this head size
        pass
    small = torch.cuda.get_device_capability(q.device) < (8, 0)
    if small or q.dtype not in (torch.float16, torch.bfloat16) or q.shape[-1] % 8 or q.shape[-1] > 256:
        return None
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = groups.ends(q.device), max(groups.lengths)
    y = varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), ends, ends, longest, longest)
    assert isinstance(y, Tensor)
    return y


class Attention(nn.Module):
    """Multi-head self-attention; `qk_norm` puts a LayerNorm per head on queries and keys (arXiv 2302.05442).

    Attributes:
        gain: factor on q k^T / sqrt(d); other than 1 under muP if head sizes grow.
    """

    gain: float = 1.0

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads, got {hidden_size} and {num_heads}"
            )
        self.num_heads = num_heads
        self.head_size = head_size = hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = nn.LayerNorm(head_size) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_size) if qk_norm else nn.Identity()
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        angles: Float[Tensor, "N half"] | None = None,
        groups: Groups | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Attention among all tokens of each row, or within groups of them."""
        if groups is not None and groups.order is not None:
            x = x.index_select(1, groups.order)
            angles = None if angles is None else angles[groups.order]
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        q, k = scaled(q, self.gain).type_as(v), k.type_as(v)
        y = attend(q, k, v) if groups is None else attend_within(q, k, v, groups)
        y = self.out(rearrange(y, "b h n d -> b n (h d)"))
        return y if groups is None or groups.back is None else y.index_select(1, groups.back)


class CrossAttention(nn.Module):
    """Multi-head cross-attention to a sample's conditioning tokens (PixArt-alpha, arXiv 2310.00426, 2.3)."""

    gain: float = 1.0
    """As in `Attention`."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_size = head_size = hidden_size // num_heads
        self.q = nn.Linear(hidden_size, hidden_size)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.q_norm = nn.LayerNorm(head_size) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_size) if qk_norm else nn.Identity()
        self.out = nn.Linear(hidden_size, hidden_size)

    def initialize(self) -> None:
        """Zero the branch's output; called after `ditmoe.model.initialization` has initialised all within it."""
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        x: Float[Tensor, "R N D"],
        others: Float[Tensor, "B L D"],
        mask: Bool[Tensor, "B L"] | None,
        layout: Layout,
    ) -> Float[Tensor, "R N D"]:
        """Attend from the tokens of each sample to its row of `others`, where the mask is true."""
        heads = {"h": self.num_heads}
        k, v = rearrange(self.kv(others), "b l (two h d) -> two b h l d", two=2, **heads)
        q, k = self.q_norm(rearrange(self.q(x), "b n (h d) -> b h n d", **heads)), self.k_norm(k)
        q, k = scaled(q, self.gain).type_as(v), k.type_as(v)
        seen = None if mask is None else mask[:, None, None]
        if not layout.packed:
            y = attend(q, k, v, seen)
        else:
            own = zip(
                q.split(layout.lengths, dim=2),
                k.split(1),
                v.split(1),
                [None] * len(k) if seen is None else seen.split(1),
                strict=True,
            )
            y = torch.cat([attend(*sample) for sample in own], dim=2)
        return self.out(rearrange(y, "b h n d -> b n (h d)"))


def scaled(q: Float[Tensor, "B H N d"], gain: float) -> Float[Tensor, "B H N d"]:
    """Multiply the queries by a number, usually 1."""
    return q if gain == 1 else gain * q
