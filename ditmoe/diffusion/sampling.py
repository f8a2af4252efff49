"""Sampling settings: steps, guidance, and first-block caching."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ditmoe.diffusion.process import HORIZON
from ditmoe.diffusion.timesteps import MOST_STEPS
from ditmoe.nn import check_threshold
from ditmoe.outside import check_number
from ditmoe.outside.options import call

MOST_GUIDANCE = 1000


@dataclass(frozen=True)
class Sampling:
    """Sampling settings: scheduler steps, guidance and the times at which it is on.

    Attributes:
        first_block_cache: threshold of `ditmoe.nn.FirstBlockCache`; 0 computes all blocks at every step.
    """

    steps: int = 50
    guidance: float = 1.0
    interval: Sequence[float] = (0.0, 1000.0)
    first_block_cache: float = 0.0

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, MOST_STEPS, whole=True)
        check_number("guidance", self.guidance, -MOST_GUIDANCE, MOST_GUIDANCE)
        times = self.interval
        if not isinstance(times, list | tuple) or len(times) != 2:
            raise ValueError(f"interval must be two times between 0 and {HORIZON}, got {times!r}")
        check_number("the start of interval", times[0], 0, HORIZON)
        check_number("the end of interval", times[1], times[0], HORIZON)
        check_threshold(self.first_block_cache)

    @classmethod
    def check(
        cls,
        steps: int | None = None,
        guidance: float | None = None,
        interval: Sequence[float] | None = None,
        first_block_cache: float | None = None,
    ) -> None:
        """Raise ValueError, one line, for command options that are invalid under any configuration."""
        cls.of({"sampling": {}}, steps, guidance, interval, first_block_cache)

    @classmethod
    def of(
        cls,
        config: dict[str, Any],
        steps: int | None = None,
        guidance: float | None = None,
        interval: Sequence[float] | None = None,
        first_block_cache: float | None = None,
    ) -> "Sampling":
        """The settings of a configuration, overridden by those given."""
        said = {"steps": steps, "guidance": guidance, "interval": interval}
        said["first_block_cache"] = first_block_cache
        changed = {k: v for k, v in said.items() if v is not None}
        if not isinstance(config.get("sampling"), Mapping):
            raise ValueError(f"sampling must be a section, got {config.get('sampling')!r}")
        return call("sampling", cls, **{**config["sampling"], **changed})
