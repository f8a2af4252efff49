"""Turns user errors into one line and exit code 2, with a suggestion of what was meant."""

import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ditmoe.config import screen
from ditmoe.config.ending import by_signals
from ditmoe.config.known_options import suggest, unknown_option
from ditmoe.distributed import launch
from ditmoe.outside import printable

OF_THE_INPUT = HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError
"""Errors of what a person gave; others are of the machine, or of the code."""

ENDLESS = "the input refers to itself, as a YAML file may in its defaults, or is nested too deeply"

NO_THREAD = (
    "no more threads can be started: raise the limit of processes (ulimit -u, or the container's) or of memory "
    "(ulimit -v), or lower the options named workers"
)

LONGEST = 2000
"""Characters of an error line that are printed, half of them from its end."""


def guard(main: Callable[[], Any], command: str | None = None) -> None:
    """Call `main`; turn a user error into one line and exit code 2, Ctrl-C, SIGTERM and SIGHUP into exit code 130.

    Of several processes, one prints the line (`launch.speaks`). Output goes through a `Screen`.

    Args:
        command: the command whose options are suggested for a misspelt one; None means any.
    """
    screen.install()
    try:
        with by_signals():
            _check_folder()
            main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (*OF_THE_INPUT, MemoryError, RuntimeError) as error:
        if not (line := _line_of(error, command)):
            raise
        trace(error)
        if launch.speaks():
            _print(line)
        if line == launch.LOST:
            sys.stdout.flush()
            os._exit(1)  # without waiting for processes that do not answer
        sys.exit(2)


def trace(error: BaseException) -> None:
    """Print where an error arose, if the environment variable DITMOE_TRACE is set."""
    if os.environ.get("DITMOE_TRACE"):
        traceback.print_exception(error)


def _line_of(error: BaseException, command: str | None) -> str:
    """One line for an error that is not of the code; else none."""
    if isinstance(error, OF_THE_INPUT):
        return explain(error, command) or _cause(error)
    return _of_a_limit(error) or (launch.LOST if launch.is_lost(error) else "")


def _check_folder() -> None:
    """Raise an error of one line if the current folder was removed, in which no path can be resolved."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "the current folder must exist, but it was removed: change to another folder"
        ) from error


def _print(line: str) -> None:
    print(f"error: {shortened(line)}", file=sys.stderr)


def shortened(line: str) -> str:
    """A printable line, without its middle if it is too long, since text from files could fill the screen."""
    line = printable(line)
    if (left := len(line) - LONGEST) <= 0:
        return line
    return f"{line[: LONGEST // 2]} ... ({left} letters left out) ... {line[-LONGEST // 2 :]}"


def _cause(error: BaseException) -> str:
    """Type and cause of an error without a message, such as Hydra's for a file that cannot be decoded."""
    said = explain(error.__cause__) if error.__cause__ else ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _of_a_limit(error: BaseException) -> str:
    """One line for an error that reports that the machine, or what it allows this process, is used up; else none."""
    if isinstance(error, RecursionError):
        return ENDLESS
    if "can't start new thread" in str(error):
        return NO_THREAD
    return f"not enough memory: {explain(error) or 'for this request'}" if is_memory(error) else ""


def is_memory(error: BaseException) -> bool:
    """Whether an error reports exhausted memory: of Python, NumPy, or torch on a GPU or a CPU."""
    kinds = (MemoryError, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError))
    of_onednn = str(error) == "could not create a primitive"  # which writes its code into memory
    return isinstance(error, kinds) or of_onednn or "can't allocate memory" in str(error)


def is_overflow(error: BaseException) -> bool:
    """Whether an error of Python or torch says that a number, such as a tensor's bytes, exceeds 64 bits or a float."""
    signs = ("verflow", "Invalid shape dimension", "Trying to create tensor with negative dimension")
    return isinstance(error, OverflowError) or any(sign in str(error) for sign in signs)


def explain(error: BaseException, command: str | None = None) -> str:
    """One line for an error, with a suggestion among the options of a command."""
    text = str(error)
    if isinstance(error, FileExistsError) and error.filename:
        return f"{error.filename} must be a folder or not exist, got something else"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_option(match[1], command)
    if match := re.search(r"Could not find '([\w/]+)/([^'/]*)'", text):
        known = sorted(
            re.findall(r"^\t([^\s_]\S*)$", text, re.MULTILINE)
        )  # without names such as _base, which are not for the command line
        return f"{match[1]}={match[2]} does not exist; {suggest(match[2], known)}"
    if match := re.search(r"Could not override '?(\S+?)'?\.\s*No match in the defaults list", text):
        return unknown_option(match[1], command)
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        key = getattr(error, "full_key", None) or match[1]
        return f"{key} must be given: {key}=..."
    if match := re.search(r"raised while resolving interpolation: (.+)", text):  # by a resolver of ditmoe
        return match[1]
    return " ".join(text.split())
