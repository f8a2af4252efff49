"""python -m ditmoe.view FILE_OR_FOLDER ...: opens samples in a window, or draws them where there is none."""

import argparse
import sys
from pathlib import Path

from hydra.utils import get_class
from omegaconf import OmegaConf

from ditmoe.config import cli
from ditmoe.modality import Modality
from ditmoe.outside import files_below, printable, tell


def modalities() -> list[type[Modality]]:
    """Every modality that a YAML names."""
    files = sorted((cli.config_folder() / "modality").glob("*.yaml"))
    return [get_class(OmegaConf.load(file)._target_) for file in files]


def modality_of(paths: list[Path]) -> type[Modality]:
    """The modality that most of these files belong to, by their endings.

    Raises:
        FileNotFoundError, ValueError: if a path does not exist or nobody opens it.
    """
    endings = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{printable(path)} does not exist")
        endings += [f.suffix.lower() for f in (files_below(path) if path.is_dir() else [path])]
    counts = {m: sum(ending in m.suffixes for ending in endings) for m in modalities()}
    best = max(counts, key=lambda m: counts[m])
    if counts[best]:
        return best
    known = sorted({s for m in modalities() for s in m.suffixes})
    raise ValueError(
        f"nothing to view in {', '.join(map(printable, paths))}: files must end in {', '.join(known)}"
    )


def view(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m ditmoe.view", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="files, folders, or a run's folder")
    parser.add_argument("--out", type=Path, help="where to draw, if no window can be opened")
    options = parser.parse_args(arguments)
    paths = [p / "samples" if (p / "samples").is_dir() else p for p in options.paths]
    tell(modality_of(paths).view(paths, options.out), sys.stdout)


def main() -> None:
    """Entry point."""
    cli.guard(view)


if __name__ == "__main__":
    main()
