"""Token refiner: trained attention over the states of a frozen text encoder."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ditmoe.nn import CrossAttention, FeedForward, Layout, normalize

HEAD_SIZE = 32


class TokenRefiner(nn.Module):
    """Transformer layers over the tokens of a caption (HunyuanVideo, arXiv 2412.03603, 2.3.2).

        x <- x + attention(norm(x)),  x <- x + MLP(norm(x))

    A sentence encoder is trained for one vector per sentence, so the state of a word tells little of the words that it
    belongs to; these layers learn from the samples which words belong together.

    Args:
        width: D of the tokens.
        layers: how many.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        heads = next(n for n in range(max(1, width // HEAD_SIZE), 0, -1) if width % n == 0)
        self.attention = nn.ModuleList(CrossAttention(width, heads) for _ in range(layers))
        self.feed_forward = nn.ModuleList(FeedForward(width, 2 * width, "swiglu") for _ in range(layers))

    def initialize(self) -> None:
        """Zero the output of both branches, so that a fresh refiner changes nothing."""
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            nn.init.zeros_(attention.out.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(feed_forward.down.weight)  # type: ignore[union-attr, arg-type]

    def forward(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """Refined tokens; masked ones are not attended to."""
        layout = Layout.even(x.shape[1:2], len(x), x.device)
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            y = normalize(x)
            x = x + attention(y, y, mask, layout)
            x = x + feed_forward(normalize(x))
        return x
