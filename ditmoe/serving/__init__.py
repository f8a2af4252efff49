"""A page that draws from a checkpoint: what may be asked there, the drawing, and the server on this machine."""

from typing import TYPE_CHECKING

from ditmoe.lazy import lazily

if TYPE_CHECKING:
    from ditmoe.serving.server import serve

__all__ = ["serve"]
__getattr__ = lazily(__name__, {"ditmoe.serving.server": __all__})
