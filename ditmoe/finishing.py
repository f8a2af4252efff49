"""The end of a training run: samples, metrics, report page, next commands; and a check beforehand that it can work."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditmoe.config.command_line import person_words
from ditmoe.config.errors import explain, shortened, trace
from ditmoe.config.trust import admit, withheld
from ditmoe.distributed import launch, say
from ditmoe.outside import TooFewError, check_number, printable, tell

if TYPE_CHECKING:
    import ditmoe.modality


def possible(options: dict[str, Any], modality: "ditmoe.modality.Modality") -> dict[str, Any]:
    """The requested `finish` options that this modality supports; prints a note on the others."""
    from ditmoe.modality import Files, Metric

    lacks = [c for c in (Files, Metric) if not isinstance(modality, c)]
    without = {"Files": "no pictures on the way and no samples after it", "Metric": "no evaluation after it"}
    for contract in lacks:
        say(f"{modality.name} does not {contract.does} (`{contract.__name__}`): {without[contract.__name__]}")
    kept = options if Files not in lacks else options | {"num": 0}
    return kept if Metric not in lacks else kept | {"evaluate": False}


def check_finish(config: dict[str, Any], modality: "ditmoe.modality.Modality") -> str:
    """Refuse before training what would fail after it; returns why evaluation is skipped, if there are too few data.

    Raises:
        ValueError: if the samples cannot be drawn or evaluated.
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


def check_places(options: dict[str, Any], folder: Path) -> None:
    """Refuse before training what would replace files of somebody else in a new run's folder.

    Args:
        options: as returned by `possible`.

    Raises:
        ValueError, OSError: with one line, if it would.
    """
    from ditmoe import checkpoint
    from ditmoe.inference.measuring import METRICS, check_report
    from ditmoe.inference.writing import check_others
    from ditmoe.reporting.page import check_page

    if launch.ranks().rank > 0 or checkpoint.exists(folder):
        return
    if options["num"]:
        check_others(folder / "samples")
    if options["evaluate"]:
        check_report(folder / METRICS)
    check_page(folder / "report.html", named=False)


def finish(
    options: dict[str, Any],
    folder: Path,
    longer: str,
    step: int,
    unmeasured: str = "",
    asking: str = "label=0",
    kind: "type[ditmoe.modality.Modality] | None" = None,
) -> None:
    """Sample, evaluate, and print where everything is and what to type next.

    Args:
        options: as returned by `possible`.
        longer: the last suggested command, which trains longer.
        step: the step reached: selects this command's own checkpoint, whatever else lies in the folder.
        unmeasured: why evaluation is impossible, if it is.
        asking: a suggested condition for the next sample, as typed.
        kind: the modality's class, which shows samples on the report page; None: one that writes files.

    If the evaluation fails although there are enough data, this is reported at the very end, with exit code 1.
    """
    from ditmoe import checkpoint
    from ditmoe.inference import sample_checkpoint
    from ditmoe.modality import Files

    own, failure = checkpoint.place(folder, step), None
    places, following = [(folder / checkpoint.FOLDER, "the model")], list[str]()
    # Trusted: this command has just written the checkpoint, and with it the paths.
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
    _print_next(places, [*following, longer])
    if failure:
        _end_with(failure)


def _print_next(places: Sequence[tuple[Path, str]], following: Sequence[str]) -> None:
    """Print where files are and what each is, and the commands that may follow, as typed."""
    run = "./run " if Path(sys.prefix).name == ".venv" and Path("run").is_file() else "python -m ditmoe."
    where = [f"  {_typed(path)}   {what}" for path, what in places]
    told = ["", "Where things are:", *where, "", "Next:", *(f"  {run}{each}" for each in following)]
    print("\n".join(map(printable, told)))


def _measure(checkpoint: Path) -> tuple[str, Exception | None]:
    """Evaluate a checkpoint; returns why there are too few data, or the error."""
    from ditmoe.inference import evaluate_checkpoint

    try:
        evaluate_checkpoint(checkpoint, trust=True)
    except TooFewError as error:  # no fault of the run
        return str(error), None
    except Exception as error:  # reported at the end: model and samples exist
        return "", error
    return "", None


def _end_with(failure: Exception) -> None:
    """Report why the evaluation failed, or raise what is a bug."""
    if not isinstance(failure, ValueError | OSError):
        raise failure
    trace(failure)
    tell(f"error: nothing was measured: {shortened(explain(failure))}")
    sys.exit(1)


def write_page(folder: Path, kind: "type[ditmoe.modality.Modality] | None") -> Path | None:
    """Write the run's report page; if that fails, print a note and return None: the run itself is fine."""
    if launch.ranks().rank > 0:
        return None
    from ditmoe.reporting import write_report

    try:
        return write_report([folder], kind=kind)
    except Exception as error:
        trace(error)
        print(f"note: no page of the run was written: {printable(explain(error))}")
        return None


def asked_next(conditioning: Mapping[str, Any]) -> str:
    """A condition for the next command, as typed: an example caption of a text model, or a class."""
    examples = conditioning.get("examples")
    return shlex.quote(f"prompt={examples[0]}") if examples else "label=0"


def next_words(config: Mapping[str, Any], file: Path) -> str:
    """A condition for the next command, and what it must trust, as typed."""
    return " ".join(filter(None, (asked_next(config["conditioning"]), trust_next(config, file))))


def trust_next(config: Mapping[str, Any], file: Path) -> str:
    """What the next command must trust to open a model and codec, as typed; "" if nothing."""
    sections = ("modality", "conditioning")
    try:
        kept = admit(config, sections, file)
    except ValueError:  # a class of no installed package
        return "trust=true"
    needed = ("modality.codec.", "conditioning.")
    named = {value for option, value in withheld(kept) if option.startswith(needed)}
    return "" if not named else shlex.quote(f"trust={named.pop()}") if len(named) == 1 else "trust=true"


def own_words(modality: str) -> str:
    """The options of this command, quoted for a shell, without the run's name and length."""
    words = person_words()
    kept = [word for word in words if word.lstrip("+").partition("=")[0] not in ("name", "trainer.steps")]
    if not any(word.startswith("modality=") for word in kept):
        kept.insert(0, f"modality={modality}")
    return " ".join(map(shlex.quote, kept))


def _typed(path: Path, word: str = "") -> str:
    """A path quoted for a shell, after its `option=` if any."""
    text = str(path)
    if text[0] in "-~'\"" or text == "null":  # would be read as an option, home folder, quotes or null
        text = f"./{text}"
    return shlex.quote(f"{word}{text}")
