"""Selects the modality that opens a file: that of its run, or the one that knows its suffix."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from omegaconf import OmegaConf

from ditmoe.checkpoint import exists, store
from ditmoe.config.folders import config_folder, config_folders
from ditmoe.config.known_classes import find
from ditmoe.config.trust import Trust, class_at
from ditmoe.modality import Files, Modality
from ditmoe.outside import files_below, printable, real_path


def modalities(folder: Path) -> list[type[Files]]:
    """Modalities that a YAML file in this folder names, that can be imported, and that implement `Files`."""
    found = []
    for file in sorted((folder / "modality").glob("*.yaml")):
        with suppress(ValueError):
            found.append(find(OmegaConf.load(file)._target_))
    return [kind for kind in dict.fromkeys(found) if issubclass(kind, Files)]


def modality_of(paths: Sequence[Path], trusted: Trust = False) -> type[Files]:
    """The modality of the run that contains these paths; for other files, the one that most suffixes belong to.

    Raises:
        ValueError: if no modality opens them, if they belong to runs of several modalities, or if the run's modality
            does not implement `Files`.
    """
    of_runs = {kind for path in paths if (kind := modality_of_run(path, trusted))}
    if len(of_runs) > 1:
        raise ValueError(f"all must be of one modality, got {', '.join(sorted(k.name for k in of_runs))}")
    for kind in of_runs:
        Files.check(kind, "view")
        return kind  # type: ignore[return-value]
    return modality_by_endings(paths)


def modality_of_run(path: Path, trusted: Trust = False) -> type[Modality] | None:
    """The modality's class of the run that a path is or is in, by the manifest; None outside of a run. Builds nothing.

    Raises:
        ValueError: if it names a class that is not trusted, see `ditmoe.config.trust`.
    """
    path = real_path(path)
    run = next((folder for folder in (path, *path.parents[:2]) if exists(folder)), None)
    if run is None:
        return None
    return modality_named(store.find(run, parts=()), trusted)


def modality_named(found: store.Checkpoint, trusted: Trust = False) -> type[Modality]:
    """The modality's class in a checkpoint's configuration; errors as in `modality_of_run`."""
    kind = class_at(found.plain.get("config"), "modality", found.path, trusted)
    if not issubclass(kind, Modality):
        raise ValueError(
            f"{found.path} must name a modality, got the class {kind.__module__}.{kind.__qualname__}"
        )
    return kind


def modality_by_endings(paths: Sequence[Path]) -> type[Files]:
    """The modality that most files belong to; installed packages are considered if ditmoe's own do not open all."""
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
