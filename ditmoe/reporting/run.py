"""Read a run's folder for a report; the run may be untrusted, incomplete or damaged."""

import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import FOLDER, Checkpoint, exists, find
from ditmoe.checkpoint.places import MANIFEST, candidates
from ditmoe.config.trust import Trust
from ditmoe.config.viewers import modality_by_endings, modality_named
from ditmoe.modality import Files
from ditmoe.outside import Patience, printable, read_json
from ditmoe.reporting import numbers
from ditmoe.reporting.budget import Budget, text_of, within
from ditmoe.reporting.log import Log, read_log
from ditmoe.reporting.pictures import of_file
from ditmoe.reporting.samples import listed, sample_sets, set_folders

SHEET_SIDE, CHART_SIDE = 1400, 1800
MOST_SHEETS = 6
CHARTS = {
    "dependence": "Mutual information between the chosen expert and time, place and class, in bits, against chance",
    "time": "How much more often than overall each expert is chosen at each time",
    "place": "The same by place",
    "asked": "The same by condition",
    "tokens": "Experts per token over time and place",
    "paths": "Which expert follows which in the next layer",
    "similarity": "Similarity of experts: weights, and outputs for the same tokens",
    "dropping": "The loss without each expert",
    "dial": "The loss against top_k and its multiply-adds",
}
BYTES_PER_NUMBER = 10


class RunReader:
    """Reads the parts of a run and collects notes on those that cannot be read."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def read(self, what: str, work: Callable[..., Any], *values: Any) -> Any:
        """The result of `work(*values)`; None, and a note, if it raises OSError or ValueError."""
        try:
            return work(*values)
        except (OSError, ValueError) as error:
            self.notes.append(text_of(f"{what}: {error}"))
            return None


def is_run(folder: Path) -> bool:
    """Whether a folder contains output of training, sampling or evaluation."""
    if not folder.is_dir():
        return False
    files = any(within(folder, name) for name in ("log.jsonl", "metrics.json"))
    return files or exists(folder) or bool(set_folders(folder))


def names_of(runs: list[Path]) -> list[str]:
    """Distinct names of runs: the last two parts of their paths, or as many as are needed."""
    whole = [run.absolute().parts[1:] for run in map(Path, map(os.path.normpath, runs))]
    for count in range(2, max(map(len, whole)) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return ["/".join(parts) for parts in whole]


def describe_run(
    run: Path,
    name: str,
    budget: Budget,
    most: int,
    trust: Trust,
    kind: type[Any] | None = None,
    patience: Patience | None = None,
) -> dict[str, Any]:
    """The content of a report on one run.

    Args:
        name: of the run in the report.
        budget: bytes of the content.
        most: most samples.
        trust: classes of other packages that may show samples.
        kind: its modality; None: the class that its checkpoint names, if it is trusted.
        patience: limit on the time for its samples.
    """
    reader = RunReader()
    content: dict[str, Any] = {"name": text_of(name, 200)}
    found = reader.read("checkpoint", checkpoint_of, run) if exists(run) else None
    classes: list[str] = []
    if found is not None:
        classes = _classes(found.plain.get("facts"))
        content |= _of_checkpoint(found.plain, budget.part(0.1))
    if file := within(run, "metrics.json"):
        measured = reader.read("metrics.json", lambda path: numbers.metrics(read_json(path)), file)
        if measured and budget.part(0.2).take(measured):
            content["metrics"] = measured
    if file := within(run, "log.jsonl"):
        log = reader.read("log.jsonl", read_log, file, int(0.3 * budget.left) // BYTES_PER_NUMBER)
        content |= _of_log(log, reader) if log else {}
    content["progress"] = _progress(run, budget.part(0.1), reader)
    content["analysis"] = _analysis(run, budget.part(0.2), reader)
    kind = kind or _kind(run, found, trust, reader)
    for part in ("config", "metrics", "log", "progress", "analysis"):
        budget.take(content.get(part))
    content["modality"] = kind.name if kind else None
    shows = kind if kind and issubclass(kind, Files) else None
    patience = patience or Patience()
    content["sets"] = reader.read("samples", sample_sets, run, shows, classes, most, budget, patience) or []
    if patience.is_over:
        reader.notes.append("samples: some are left out, as those before them took too long for their size")
    return content | {"notes": reader.notes[:20]}


def checkpoint_of(run: Path) -> Checkpoint:
    """The newest complete checkpoint in a run's folder, without tensors.

    Raises:
        FileNotFoundError, ValueError: with one line, if none is complete, or they are reached only by links.
    """
    own = [at for at in candidates(run) if within(*_in_run(at), MANIFEST)]
    error: Exception = ValueError("it is reached only by links, which are not followed")
    for at in own:
        try:
            return find(at, ())
        except (OSError, ValueError) as failed:
            error = failed
    raise error


def _in_run(checkpoint: Path) -> tuple[Any, ...]:
    """The folder of a checkpoint's run, followed by the names of the folders down to the checkpoint."""
    inner = checkpoint.parent.name == FOLDER
    return (checkpoint.parent.parent, FOLDER, checkpoint.name) if inner else (checkpoint,)


def _classes(facts: Any) -> list[str]:
    names = facts.get("classes") if isinstance(facts, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _of_checkpoint(plain: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """Step, configuration and command of a checkpoint."""
    content = {"step": plain["step"], "config": budget.keep(numbers.flat(plain.get("config")))}
    words = plain.get("command")
    if isinstance(words, list):
        content["command"] = text_of(f"python -m ditmoe.{shlex.join(map(str, words))}", 2000)
    return content


def _of_log(log: Log, reader: RunReader) -> dict[str, Any]:
    if log.damaged:
        reader.notes.append(f"log.jsonl: {log.damaged} lines are half written, not records, or out of order")
    if log.infinite:
        reader.notes.append(f"log.jsonl: {log.infinite} numbers are not finite and leave gaps in the curves")
    if log.unnamed:
        reader.notes.append(f"log.jsonl: {log.unnamed} curves are left out")
    return {"log": {"steps": log.steps, "curves": log.curves, "every": log.every}}


def _kind(run: Path, found: Checkpoint | None, trust: Trust, reader: RunReader) -> type[Any] | None:
    """The run's modality from its checkpoint; without one, from the suffixes of its sample files."""
    if found is not None:
        return reader.read("samples are listed, not shown", modality_named, found, trust)
    # Only listed files, since a link could lead to a whole disk.
    files = [file for folder in set_folders(run) for found in listed(folder)[0] for file in found.files]
    return reader.read("samples", modality_by_endings, files) if files else None


def _progress(run: Path, budget: Budget, reader: RunReader) -> list[dict[str, Any]]:
    """Previews of samples during training: the first, the last, and some in between."""
    folder = within(run, "progress")
    if folder is None or not folder.is_dir():
        return []
    matches = [re.fullmatch(r"step-(\d{1,18})\.png", path.name, re.ASCII) for path in folder.iterdir()]
    steps = sorted((int(match[1]), match[0]) for match in matches if match)
    last = max(1, len(steps) - 1)
    some = (
        sorted({round(i * last / (MOST_SHEETS - 1)) for i in range(MOST_SHEETS)}) if len(steps) > 1 else [0]
    )
    sheets = []
    for step, name in (steps[i] for i in some if i < len(steps)):
        file = within(folder, name)
        form = reader.read(f"progress/{name}", of_file, file, SHEET_SIDE) if file else None
        if form is not None and budget.take(form):
            sheets.append({"step": step, **form})
    return sheets


def _analysis(run: Path, budget: Budget, reader: RunReader) -> dict[str, Any] | None:
    """The results of `analyze` in the run's folder; None without any."""
    folder = within(run, "analysis")
    if folder is None or not folder.is_dir():
        return None
    file = within(folder, "analysis.json")
    content = reader.read("analysis.json", read_json, file) if file else None
    done: dict[str, Any] = numbers.dependence(content) | {"pictures": []}
    for name, caption in CHARTS.items():
        file = within(folder, f"{name}.png")
        form = reader.read(f"{name}.png", of_file, file, CHART_SIDE) if file else None
        if form is not None and budget.take(form):
            done["pictures"].append({"name": name, "caption": caption, **form})
    return done if done["pictures"] or done["dependence"] else None


def check_runs(runs: list[Path]) -> None:
    """Raises ValueError or FileNotFoundError, with one line, for the first folder that is not a run."""
    for run in runs:
        if not run.exists():
            raise FileNotFoundError(f"{printable(run)} does not exist")
        if not is_run(run):
            raise ValueError(
                f"{printable(run)} must be a run's folder, with log.jsonl, metrics.json, checkpoints or samples"
            )
