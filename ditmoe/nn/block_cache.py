"""First-block caching: reuse the residual of the later blocks from an earlier pass."""

from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.outside import check_number

LARGEST_THRESHOLD = 1000


class FirstBlockCache:
    """Cache, for each sample of one sampling run, of the residual of all blocks but the first.

    With h0 the tokens before the first block, h1 after it and hL after the last, and primes for the latest pass of the
    sample through all blocks:

        hL = h1 + (hL' - h1')     where     mean |(h1 - h0) - (h1' - h0')|  <  threshold mean |h1' - h0'|

    (the first-block cache of ParaAttention and diffusers; TeaCache, arXiv 2411.19108, compares the modulated input of
    the first block instead). The decision is made per sample, so that a sample does not depend on its batch. The host
    has to know which samples are stale: it synchronises with a GPU once per pass.

    Args:
        threshold: the relative change from which all blocks run; 0: always.

    Attributes:
        passes, skipped: samples passed through the model, and those of them for which only the first block ran.
    """

    def __init__(self, threshold: float) -> None:
        check_threshold(threshold)
        self.threshold = threshold
        self.passes = self.skipped = 0
        self._change: Tensor | None = None
        self._rest: Tensor | None = None

    def stale(self, change: Float[Tensor, "B N D"]) -> list[int]:
        """The samples that must go through all blocks, given the first block's residual."""
        every = list(range(len(change)))
        self.passes += len(every)
        if self._change is None or self._change.shape != change.shape:  # guidance began or ended
            self._change = self._rest = None
            return every
        apart = (change - self._change).abs().flatten(1).mean(1)
        # "Fresh" is tested, not "stale", so that a NaN change counts as stale.
        fresh = (apart < self.threshold * self._change.abs().flatten(1).mean(1)).tolist()
        self.skipped += sum(fresh)
        return [i for i in every if not fresh[i]]

    def keep(
        self, there: Int[Tensor, " b"], change: Float[Tensor, "B N D"], rest: Float[Tensor, "b N D"]
    ) -> None:
        """Store the residuals of the first block and of the others, for the samples that went through all blocks."""
        if self._change is None or self._rest is None:
            self._change, self._rest = change, rest
            return
        self._change = self._change.index_copy(0, there, change[there])
        self._rest = self._rest.index_copy(0, there, rest)

    @property
    def rest(self) -> Float[Tensor, "B N D"]:
        """The latest residual of the other blocks, per sample."""
        assert self._rest is not None
        return self._rest


def check_threshold(threshold: float) -> None:
    """Raise ValueError unless the threshold is valid."""
    check_number("first_block_cache", threshold, 0, LARGEST_THRESHOLD)
