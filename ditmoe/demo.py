"""python -m ditmoe.demo checkpoint=starter/pointcloud: serves a browser page that samples from a checkpoint."""

import importlib.util
from typing import Any

from ditmoe.config import cli
from ditmoe.outside import check_number

MOST = 32
"""Most samples per click: the batch size of `sample`, so that each sample is bitwise the one that `sample` draws."""


def demo(config: dict[str, Any]) -> None:
    """Serve until stopped."""
    check_number("most", config["most"], 1, MOST, whole=True)
    check_number("upload", config["upload"], 1, 4096, whole=True)
    if config["port"] is not None:
        check_number("port", config["port"], 1, 65535, whole=True)
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page is made by Gradio, which is not installed: pip install 'ditmoe[demo]'")
    from ditmoe.serving import serve  # torch: only after checking the options

    serve(**config)


def main() -> None:
    """Entry point."""
    cli.run(demo, "demo")


if __name__ == "__main__":
    main()
