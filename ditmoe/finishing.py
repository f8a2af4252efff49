"""What follows a training: samples, numbers, a page, and what to type next; and before it, whether all that can be."""

import os
import shlex
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditmoe.config.command_line import person_words
from ditmoe.config.errors import explain
from ditmoe.distributed import launch, say
from ditmoe.outside import TooFewError, check_number, printable, tell

if TYPE_CHECKING:
    import ditmoe.modality


def possible(options: dict[str, Any], modality: "ditmoe.modality.Modality") -> dict[str, Any]:
    """What can be done after the training of what was asked for; says once what this modality has no contract for."""
    from ditmoe.modality import Files, Metric

    lacks = [c for c in (Files, Metric) if not isinstance(modality, c)]
    without = {"Files": "no pictures on the way and no samples after it", "Metric": "no evaluation after it"}
    for contract in lacks:
        say(f"{modality.name} does not {contract.does} (`{contract.__name__}`): {without[contract.__name__]}")
    kept = options if Files not in lacks else options | {"num": 0}
    return kept if Metric not in lacks else kept | {"evaluate": False}


def check_finish(config: dict[str, Any], modality: "ditmoe.modality.Modality") -> str:
    """Refuse before the training what would fail after it; says why nothing will be measured, where data are too few.

    Raises:
        ValueError: if the samples cannot be drawn, or not be measured.
    """
    from ditmoe.modality import Metric

    options = config["finish"]
    if unknown := sorted(set(options) - {"num", "evaluate"}):
        raise ValueError(f"finish does not take {printable(unknown[0])}; it takes evaluate, num")
    if missing := sorted({"num", "evaluate"} - set(options)):
        raise ValueError(f"finish must be given {missing[0]}")
    check_number("finish.num", options["num"], 0, whole=True)
    if launch.ranks().rank > 0 or not options["evaluate"]:
        return ""
    try:
        Metric.of(modality, "evaluate").check_evaluation()
    except TooFewError as error:
        return str(error)
    except (ValueError, OSError) as error:
        raise ValueError(f"{error} (or finish.evaluate=false)") from error
    return ""


def finish(
    options: dict[str, Any],
    folder: Path,
    longer: str,
    step: int,
    unmeasured: str = "",
    asking: str = "label=0",
    kind: "type[ditmoe.modality.Modality] | None" = None,
) -> None:
    """Sample, measure, and say where everything is and what to type next.

    Args:
        options: what is `possible` of it.
        longer: a command that goes on from here, last of those that are told.
        step: that the run has reached: its own checkpoint is taken, whose configuration is this command's, whatever
            else lies in the folder.
        unmeasured: why nothing can be measured, if it cannot.
        asking: what to ask for next, as it is typed.
        kind: the modality's class, which shows samples on the page of the run; None: one that writes files.

    What fails of the measuring, though there is enough to measure, is said at the very end, with exit code 1.
    """
    from ditmoe import checkpoint
    from ditmoe.inference import sample_checkpoint
    from ditmoe.modality import Files

    own, failure = checkpoint.place(folder, step), None
    places, following = [(folder / checkpoint.FOLDER, "the model")], list[str]()
    # The paths that this checkpoint names are those of the command that wrote it, just now.
    out = folder / "samples"
    if options["num"] and (paths := sample_checkpoint(own, num=options["num"], out=out, trust=True)):
        drawn = paths[0].parent
        places += [(paths[0], "look at this first"), (drawn, f"{options['num']} samples")]
        following.append(f"view {_typed(drawn)}")
    if options["evaluate"]:
        unmeasured, failure = (unmeasured, None) if unmeasured else _measure(own)
        if unmeasured:
            print(f"note: nothing was measured: {printable(unmeasured)}")
        elif failure is None:
            places.append((folder / "metrics.json", "the numbers above"))
    if page := write_page(folder, kind):
        places.append((page, "all of it on one page, for a browser"))
    if kind is None or issubclass(kind, Files):
        following.append(f"sample {_typed(folder, 'checkpoint=')} num=16 {asking} seed=1")
    else:
        following.append(f"export {_typed(folder, 'checkpoint=')} out=...")
    run = "./run " if Path(sys.prefix).name == ".venv" and Path("run").is_file() else "python -m ditmoe."
    where = [f"  {_typed(path)}   {what}" for path, what in places]
    told = [
        "",
        "Where things are:",
        *where,
        "",
        "Next:",
        *(f"  {run}{each}" for each in (*following, longer)),
    ]
    print("\n".join(map(printable, told)))
    if failure:
        _end_with(failure)


def _measure(checkpoint: Path) -> tuple[str, Exception | None]:
    """Measure what a checkpoint draws; why there is too little to measure, or what failed of it."""
    from ditmoe.inference import evaluate_checkpoint

    try:
        evaluate_checkpoint(checkpoint, trust=True)
    except TooFewError as error:  # the run is well
        return str(error), None
    except Exception as error:  # a fault, which is said at the end: model and samples are there
        return "", error
    return "", None


def _end_with(failure: Exception) -> None:
    """Say what failed of the measuring, or raise what is a fault of the program."""
    if not isinstance(failure, ValueError | OSError):
        raise failure
    if os.environ.get("DITMOE_TRACE"):
        traceback.print_exception(failure)
    tell(f"error: nothing was measured: {explain(failure)}")
    sys.exit(1)


def write_page(folder: Path, kind: "type[ditmoe.modality.Modality] | None") -> Path | None:
    """Show the run on a page; None, and a line, where that fails, which is no fault of the run."""
    if launch.ranks().rank > 0:
        return None
    from ditmoe.reporting import write_report

    try:
        return write_report([folder], kind=kind)
    except Exception as error:
        if os.environ.get("DITMOE_TRACE"):
            traceback.print_exception(error)
        print(f"note: no page of the run was written: {printable(explain(error))}")
        return None


def asked_next(conditioning: Mapping[str, Any]) -> str:
    """What to ask for in the next command, as it is typed: a caption that a model of text keeps, or a class."""
    examples = conditioning.get("examples")
    return shlex.quote(f"prompt={examples[0]}") if examples else "label=0"


def own_words(modality: str) -> str:
    """The words of this command, for a shell, without the run's name and length."""
    words = person_words()
    kept = [word for word in words if word.lstrip("+").partition("=")[0] not in ("name", "trainer.steps")]
    if not any(word.startswith("modality=") for word in kept):
        kept.insert(0, f"modality={modality}")
    return " ".join(map(shlex.quote, kept))


def _typed(path: Path, word: str = "") -> str:
    """A path as a person types it into a shell, behind the `option=` that takes it."""
    text = str(path)
    if text[0] in "-~'\"" or text == "null":  # an option, a home, Hydra's quotes, none
        text = f"./{text}"
    return shlex.quote(f"{word}{text}")
