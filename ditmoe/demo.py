"""python -m ditmoe.demo checkpoint=starter/pointcloud: a page in the browser that draws from a checkpoint."""

import importlib.util
from typing import Any

from ditmoe.config import cli
from ditmoe.outside import check_number

MOST = 32
"""Samples of one click: as many as `sample` draws at a time, of which each is then to the bit what that draws."""


def demo(config: dict[str, Any]) -> None:
    """The command: serves until it is stopped."""
    check_number("most", config["most"], 1, MOST, whole=True)
    check_number("upload", config["upload"], 1, 4096, whole=True)
    if config["port"] is not None:
        check_number("port", config["port"], 1, 65535, whole=True)
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page is made by Gradio, which is not installed: pip install 'ditmoe[demo]'")
    from ditmoe.serving import serve  # torch, which a mistake in the words should not wait for

    serve(**config)


def main() -> None:
    """Entry point."""
    cli.run(demo, "demo")


if __name__ == "__main__":
    main()
