"""python -m ditmoe.sample checkpoint=runs/pointcloud/default: draws samples and writes them."""

import sys
from typing import TYPE_CHECKING, Any

from ditmoe.config import cli
from ditmoe.config.command_line import WORDS
from ditmoe.lazy import lazily
from ditmoe.outside import tell

if TYPE_CHECKING:
    from ditmoe.inference import ask, draw, draw_from, sample_checkpoint

__all__ = ["ask", "draw", "draw_from", "sample_checkpoint"]
__getattr__ = lazily(__name__, {"ditmoe.inference": __all__})


def sample(config: dict[str, Any]) -> None:
    """Run the command."""
    from ditmoe.inference import sample_checkpoint  # torch: only after checking the options

    words = config.pop(WORDS, {})
    if not (paths := sample_checkpoint(**config, **words)):
        return
    where = paths[1] if paths[1].suffix == ".npz" else paths[0].parent
    tell(paths[0], sys.stdout)
    tell(f"{where}: {config['num']} samples", sys.stdout)


def main() -> None:
    """Entry point."""
    cli.run(sample, "sample", many=True, words=True)


if __name__ == "__main__":
    main()
