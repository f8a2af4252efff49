"""python -m ditmoe.convert source=FILE out=FOLDER: converts published weights of DiT, DiT-MoE and DiT-3D.

`ditmoe.load(FOLDER)` opens the result.
"""

import shlex
import sys
from typing import Any

from ditmoe.config import cli
from ditmoe.outside import in_python, tell


def convert(config: dict[str, Any]) -> None:
    """Run the command."""
    from ditmoe.pretrained import convert_file, words_to_start_from  # torch: only after checking the options

    out = config["out"]
    tell(convert_file(**config), sys.stdout)
    tell(f"wrote {out}; in Python: model = ditmoe.load({in_python(out)})", sys.stdout)
    if words := words_to_start_from(out):
        command = shlex.join(["python", "-m", "ditmoe.train", "modality=image", f"init={out}", *words])
        tell(f"to fine-tune: {command}, with your pictures, their size and the autoencoder", sys.stdout)


def main() -> None:
    """Entry point."""
    cli.run(convert, "convert")


if __name__ == "__main__":
    main()
