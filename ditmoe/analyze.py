"""python -m ditmoe.analyze checkpoint=runs/pointcloud/default: shows what the experts of a trained model do."""

from typing import TYPE_CHECKING, Any

from ditmoe.config import cli
from ditmoe.lazy import lazily

if TYPE_CHECKING:
    from ditmoe.analysis import analyze_checkpoint

__all__ = ["analyze_checkpoint"]
__getattr__ = lazily(__name__, {"ditmoe.analysis": __all__})


def analyze(config: dict[str, Any]) -> None:
    """Run the command."""
    from ditmoe.analysis import analyze_checkpoint  # torch: only after checking the options

    print(analyze_checkpoint(**config, tell=True))


def main() -> None:
    """Entry point."""
    cli.run(analyze, "analyze")


if __name__ == "__main__":
    main()
