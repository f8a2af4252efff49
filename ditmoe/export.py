"""python -m ditmoe.export checkpoint=RUN out=FOLDER: writes a diffusers pipeline, see `ditmoe.Pipeline`."""

import sys
from typing import TYPE_CHECKING, Any

from ditmoe.config import cli
from ditmoe.lazy import lazily
from ditmoe.outside import in_python, tell

if TYPE_CHECKING:
    from ditmoe.pipelines.export import export

__all__ = ["export"]
__getattr__ = lazily(__name__, {"ditmoe.pipelines.export": __all__})


def command(config: dict[str, Any]) -> None:
    """Run the command."""
    from ditmoe.pipelines.export import export  # imports torch and diffusers

    source, out = config.pop("checkpoint"), config.pop("out")
    tell(export(source, out, **config), sys.stdout)
    tell(f"in Python: pipe = ditmoe.Pipeline.from_pretrained({in_python(out)})", sys.stdout)


def main() -> None:
    """Entry point."""
    cli.run(command, "export")


if __name__ == "__main__":
    main()
