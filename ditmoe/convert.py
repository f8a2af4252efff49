"""python -m ditmoe.convert source=FILE out=FOLDER: published weights of DiT, DiT-MoE and DiT-3D become ours.

The folder is opened by `ditmoe.load(FOLDER)`.
"""

import sys
from typing import Any

from ditmoe.config import cli
from ditmoe.outside import in_python, tell


def convert(config: dict[str, Any]) -> None:
    """The command."""
    from ditmoe.pretrained import convert_file  # torch, which a mistake in the words should not wait for

    out = config["out"]
    tell(convert_file(**config), sys.stdout)
    tell(f"wrote {out}; in Python: model = ditmoe.load({in_python(out)})", sys.stdout)


def main() -> None:
    """Entry point."""
    cli.run(convert, "convert")


if __name__ == "__main__":
    main()
