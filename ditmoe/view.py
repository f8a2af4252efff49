"""python -m ditmoe.view FILE_OR_FOLDER ...: opens samples in a window, or draws them where there is none."""

import argparse
import sys
from pathlib import Path

from ditmoe.config.errors import guard
from ditmoe.outside import printable, tell


def view(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m ditmoe.view", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="files, folders, or a run's folder")
    parser.add_argument("--out", type=Path, help="where to draw, if no window can be opened")
    parser.add_argument(
        "--trust", action="store_true", help="take the modality that a run names, whoever wrote it"
    )
    options = parser.parse_args(arguments)
    paths = [p / "samples" if (p / "samples").is_dir() else p for p in options.paths]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{printable(path)} does not exist")
    from ditmoe.checkpoint import check_holds_no_link, check_own  # torch: only after checking the options
    from ditmoe.config.viewers import modality_of

    for path in {*paths} - {*options.paths}:  # not named in the command
        check_own([path])
        check_holds_no_link(path)
    tell(modality_of(paths, options.trust).view(paths, options.out), sys.stdout)


def main() -> None:
    """Entry point."""
    guard(view)


if __name__ == "__main__":
    main()
