"""python -m ditmoe.view FILE_OR_FOLDER ...: opens samples in a window, or draws them where there is none."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from omegaconf import OmegaConf

from ditmoe import checkpoint
from ditmoe.config import cli, trust
from ditmoe.config.folders import config_folder, config_folders
from ditmoe.modality import Files, Modality
from ditmoe.outside import files_below, printable, tell


def modalities(folder: Path) -> list[type[Files]]:
    """Those that a YAML in this folder names, that can be imported, and that write files."""
    found = []
    for file in sorted((folder / "modality").glob("*.yaml")):
        with suppress(ValueError):
            found.append(trust.find(OmegaConf.load(file)._target_))
    return [kind for kind in dict.fromkeys(found) if issubclass(kind, Files)]


def modality_of(paths: Sequence[Path], trusted: trust.Trust = False) -> type[Files]:
    """The modality of the run that these paths lie in; of loose files that which most belong to, by their endings.

    Raises:
        FileNotFoundError, ValueError: if a path does not exist, nobody opens it, or its run's modality has no files.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{printable(path)} does not exist")
    of_runs = {kind for path in paths if (kind := modality_of_run(path, trusted))}
    if len(of_runs) > 1:
        raise ValueError(f"all must be of one modality, got {', '.join(sorted(k.name for k in of_runs))}")
    for kind in of_runs:
        Files.check(kind, "view")
        return kind  # type: ignore[return-value]
    return modality_by_endings(paths)


def modality_of_run(path: Path, trusted: trust.Trust = False) -> type[Modality] | None:
    """What the manifest says of the run that a path is, or that it lies in: a class by its name, nothing is made.

    Raises:
        ValueError: if it names a class that is not trusted, see `ditmoe.config.trust`.
    """
    path = path.resolve()
    run = next((folder for folder in (path, *path.parents[:2]) if checkpoint.exists(folder)), None)
    if run is None:
        return None
    found = checkpoint.find(run, parts=())
    kind = trust.class_at(found.part("config"), "modality", found.path, trusted)
    if not issubclass(kind, Modality):
        raise ValueError(f"{found.path} names a modality that is none: {kind.__module__}.{kind.__qualname__}")
    return kind


def modality_by_endings(paths: Sequence[Path]) -> type[Files]:
    """The modality that most files belong to; those of installed packages are asked if ditmoe's own open not all."""
    files = [f for path in paths for f in (files_below(path) if path.is_dir() else [path])]
    endings = [file.suffix.lower() for file in files]
    known = modalities(config_folder())
    if not {*endings} <= {suffix for kind in known for suffix in kind.suffixes}:
        known += [kind for folder in config_folders()[1:] for kind in modalities(folder)]
    best = max(known, key=lambda kind: sum(ending in kind.suffixes for ending in endings))
    if not {*endings} & {*best.suffixes}:
        raise ValueError(
            f"nothing to view in {', '.join(map(printable, paths))}: "
            f"files must end in {', '.join(sorted({s for kind in known for s in kind.suffixes}))}"
        )
    return best


def view(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m ditmoe.view", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="files, folders, or a run's folder")
    parser.add_argument("--out", type=Path, help="where to draw, if no window can be opened")
    parser.add_argument(
        "--trust", action="store_true", help="take the modality that a run names, whoever wrote it"
    )
    options = parser.parse_args(arguments)
    paths = [p / "samples" if (p / "samples").is_dir() else p for p in options.paths]
    tell(modality_of(paths, options.trust).view(paths, options.out), sys.stdout)


def main() -> None:
    """Entry point."""
    cli.guard(view)


if __name__ == "__main__":
    main()
