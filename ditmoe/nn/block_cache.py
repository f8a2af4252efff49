"""First-block caching: the change that the blocks after the first make is taken from an earlier pass."""

from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.outside import check_number

LARGEST_THRESHOLD = 1000


class FirstBlockCache:
    """Of each sample of one drawing, what all blocks but the first last added, and when that is stale.

    With h0 the tokens before the first block, h1 after it and hL after the last, and primes for the last pass in which
    this sample went through all blocks:

        hL = h1 + (hL' - h1')     where     mean |(h1 - h0) - (h1' - h0')|  <  threshold mean |h1' - h0'|

    (the first-block cache of ParaAttention and diffusers; TeaCache, arXiv 2411.19108, compares the modulated input of
    the first block instead). Each sample is asked by itself, so that what it is drawn with changes nothing. The host
    has to know who is stale: it waits for a GPU once in each pass.

    Args:
        threshold: the relative change from which on all blocks run; 0 is none below which they do not.

    Attributes:
        passes, skipped: samples that went through the model, and of them those of which the first block alone ran.
    """

    def __init__(self, threshold: float) -> None:
        check_threshold(threshold)
        self.threshold = threshold
        self.passes = self.skipped = 0
        self._change: Tensor | None = None
        self._rest: Tensor | None = None

    def stale(self, change: Float[Tensor, "B N D"]) -> list[int]:
        """The samples that must go through all blocks, by what the first one changed."""
        every = list(range(len(change)))
        self.passes += len(every)
        if self._change is None or self._change.shape != change.shape:  # guidance began or ended
            self._change = self._rest = None
            return every
        apart = (change - self._change).abs().flatten(1).mean(1)
        # Not of less: a change that is no number is stale.
        fresh = (apart < self.threshold * self._change.abs().flatten(1).mean(1)).tolist()
        self.skipped += sum(fresh)
        return [i for i in every if not fresh[i]]

    def keep(
        self, there: Int[Tensor, " b"], change: Float[Tensor, "B N D"], rest: Float[Tensor, "b N D"]
    ) -> None:
        """What the first block changed and the others added to those samples that went through all."""
        if self._change is None or self._rest is None:
            self._change, self._rest = change, rest
            return
        self._change = self._change.index_copy(0, there, change[there])
        self._rest = self._rest.index_copy(0, there, rest)

    @property
    def rest(self) -> Float[Tensor, "B N D"]:
        """What the other blocks last added to each sample."""
        assert self._rest is not None
        return self._rest


def check_threshold(threshold: float) -> None:
    """Raises ValueError unless it is a threshold."""
    check_number("first_block_cache", threshold, 0, LARGEST_THRESHOLD)
