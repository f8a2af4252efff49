"""python -m ditmoe.report runs/pointcloud/default [more runs] [out=report.html] [samples=64]: runs on one page.

The page is one file that a browser opens from the disk: samples to turn and play, numbers with their intervals, curves,
what experts do, and the configurations side by side. `trust=true` lets classes that a run names show its samples.
"""

import argparse
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditmoe.config.errors import guard
from ditmoe.lazy import lazily
from ditmoe.outside import printable, tell

if TYPE_CHECKING:
    from ditmoe.reporting import write_report

__all__ = ["write_report"]
__getattr__ = lazily(__name__, {"ditmoe.reporting": __all__})
WORDS = ("out", "samples", "trust")


def report(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m ditmoe.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN | out=FILE | samples=N | trust=true",
        help="folders of runs, and options",
    )
    runs, options = read_words(parser.parse_args(arguments).words)
    for run in runs:
        if not run.is_dir():
            of = (
                "; a starter's samples and numbers lie in runs/starter/"
                if run.parts[:1] == ("starter",)
                else ""
            )
            raise FileNotFoundError(f"{printable(run)} must be a run's folder, but there is none{of}")
    from ditmoe.reporting import write_report  # torch: only after checking the options

    file = write_report(runs, **options)
    tell(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB): open it in a browser", sys.stdout)


def read_words(words: list[str]) -> tuple[list[Path], dict[str, Any]]:
    """Parse a command line into folders and options.

    Raises:
        ValueError: one line, for a word that is neither.
    """
    runs: list[Path] = []
    options: dict[str, Any] = {}
    for word in words:
        name, is_option, value = word.partition("=")
        if not is_option or Path(word).exists():
            runs.append(Path(word))
        elif name not in WORDS:
            near = difflib.get_close_matches(name, WORDS, n=1)
            known = f"did you mean {near[0]}?" if near else f"choose from {', '.join(WORDS)}"
            raise ValueError(f"{printable(name)} is not an option; {known}")
        else:
            options[name] = _value(name, value)
    if not runs:
        raise ValueError("a run's folder must be named, such as runs/pointcloud/default")
    return runs, options


def _value(name: str, text: str) -> Any:
    if name == "samples":
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ValueError(f"samples must be a whole number, got {printable(text)!r}")
        return int(text)
    if name == "trust":
        if text not in ("true", "false"):
            raise ValueError(f"trust must be true or false, got {printable(text)!r}")
        return text == "true"
    if not text or "\0" in text:
        raise ValueError(f"{name} must be a path, got {printable(text)!r}")
    return Path(text)


def main() -> None:
    """Entry point."""
    guard(report)


if __name__ == "__main__":
    main()
