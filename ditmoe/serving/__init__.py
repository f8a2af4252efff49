"""The demo: a local web page that generates samples from a checkpoint."""

from typing import TYPE_CHECKING

from ditmoe.lazy import lazily

if TYPE_CHECKING:
    from ditmoe.serving.server import serve

__all__ = ["serve"]
__getattr__ = lazily(__name__, {"ditmoe.serving.server": __all__})
