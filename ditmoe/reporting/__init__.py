"""A self-contained HTML report of runs: samples, metrics, curves, expert analysis, configuration."""

from typing import TYPE_CHECKING

from ditmoe.lazy import lazily

if TYPE_CHECKING:
    from ditmoe.reporting.page import write_report

__all__ = ["write_report"]
__getattr__ = lazily(__name__, {"ditmoe.reporting.page": __all__})
