"""What all commands share: finding the configuration, and mistakes that end in one clear line."""

import hashlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ditmoe.checkpoint.atomic import recover
from ditmoe.checkpoint.places import candidates
from ditmoe.config import screen, yaml_files
from ditmoe.config.ending import by_sigterm
from ditmoe.config.folders import config_folder, config_folders, installed
from ditmoe.config.known_options import known_options, suggest, unknown_option
from ditmoe.config.overrides import Overrides, mark_paths
from ditmoe.distributed import launch
from ditmoe.outside import check_numbers, file_name, largest_words, printable, using_device

PATHS = (
    "source",
    "out",
    "checkpoint",
    "init",
    "generated",
    "reference",
    "train",
    "autoencoder",
    "guidance_model",
)
"""Words of commands that name a file, a folder or a model on the hub."""
TEXTS = (*PATHS, "name", "licence", "entry")
"""Words of commands that are text, whatever they look like: `out=2024`, `name=a,b`."""
SENTENCES = ("label", "prompt", "negative", "prompts")
"""Words of a conditioning that are text, which may look like a number, or several in a list: a class, a sentence."""
WORDS = "words"
"""Section of a command's configuration with the words that a modality brings (`ditmoe.config.words`)."""
WITH_VALUE = (
    "--config-dir",
    "-cd",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--cfg",
    "-c",
    "--package",
    "-p",
)
"""Hydra's own options that take the next word."""


class InstalledConfigs(SearchPathPlugin):
    """Puts the YAML files of installed packages on Hydra's search path, after ditmoe's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra."""
        for name, folder in installed().items():
            search_path.append(name, f"file://{folder}")


Plugins.instance().register(InstalledConfigs)


def first_choice(group: str, *names: str) -> str:
    """The first of these files that a group of the configuration has, here or in --config-dir; else the last."""
    known = GlobalHydra.instance().config_loader().get_group_options(group)
    return next((name for name in names if name in known), names[-1])


# For train.yaml, where a modality may have a router and a process of its own, and need not.
OmegaConf.register_new_resolver("first_choice", first_choice, replace=True)
# For layers with experts, or that attend to text, which follow the depth: the second, the fourth and so on.
OmegaConf.register_new_resolver("every_second", lambda depth: list(range(1, depth, 2)), replace=True)


def run(
    command: Callable[[dict[str, Any]], None], config_name: str, many: bool = False, words: bool = False
) -> None:
    """Run one entry point under Hydra with the words of the command line.

    A user's mistake ends in one line on stderr and exit code 2; DITMOE_TRACE=1 shows where it was raised.

    Args:
        many: the command knows how to share its work among the processes of torchrun.
        words: it takes words of a modality too, which stand in the section `WORDS` then.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if launch.world() > 1 and not many:
        guard(lambda: _refuse_many(config_name), config_name)

    def read() -> None:
        yaml_files.check_told(sys.argv[1:])
        sys.argv[1:] = read_words(sys.argv[1:])
        if words:
            sys.argv[1:] = sectioned(sys.argv[1:], config_name)

    def main(config: DictConfig) -> None:
        guard(lambda: _checked(config), config_name)  # in here, or Hydra adds lines of its own

    def _checked(config: DictConfig) -> None:
        check_types(config, config_name)
        options = cast(dict, OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
        mark_paths(options, HydraConfig.get().overrides.task, lambda name: _is_path(name, options))
        check_numbers(options)
        check_paths(options)
        with using_device(options.pop("device", "auto")), launch.processes():
            try:
                command(options)
            except (OverflowError, RuntimeError, TypeError) as error:  # torch's is any of them
                if not is_overflow(error):
                    raise
                raise ValueError(
                    f"the numbers are too large for any machine: {largest_words(options)}"
                ) from error

    guard(read, config_name)
    under_hydra = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)
    guard(under_hydra(main), config_name)


def check_paths(words: dict[str, Any]) -> None:
    """Refuse a word that names a file or a folder and is no text, as Hydra reads `out=2024`, and a missing checkpoint.

    Raises:
        ValueError, FileNotFoundError: one line.
    """
    for name in PATHS:
        if (value := words.get(name)) is not None and (
            not isinstance(value, str) or "\0" in value or not value
        ):
            raise ValueError(f"{name} must be a path, got {value!r}")
    for name in ("checkpoint", "guidance_model"):
        if words.get(name):
            recover(path := Path(words[name]))
            if not path.exists():
                try:
                    candidates(path)  # which says so, before torch is loaded
                except FileNotFoundError as error:
                    raise FileNotFoundError(str(error).replace("checkpoint", name, 1)) from error


def read_words(arguments: Sequence[str]) -> list[str]:
    """A command line with each word as Hydra has to get it (`ditmoe.config.overrides`)."""
    read = overrides(many=any(word in ("-m", "--multirun") for word in arguments))
    before = ["", *arguments]
    return [
        word if word.startswith("-") or last in WITH_VALUE else read.override(word)
        for last, word in zip(before, arguments, strict=False)
    ]


def person_words() -> list[str]:
    """The words of the command that runs, as a person would type them behind a shell's own quoting.

    Hydra's own options are left out but for --config-dir, without which the words may have no meaning.
    """
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    folders = [os.path.relpath(s.path) for s in sources if s.provider == "command-line"]
    words = cast(list, OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))
    told = [folder if not folder.startswith("..") else os.path.abspath(folder) for folder in folders]
    return [
        *(word for folder in told for word in ("--config-dir", folder)),
        *map(overrides().said, words),
    ]


def overrides(many: bool = False) -> Overrides:
    """How words of all commands are read.

    Args:
        many: --multirun.
    """
    groups = {child.name for folder in config_folders() for child in folder.iterdir() if child.is_dir()}

    def is_literal(name: str) -> bool:
        values = known_options().get(name, ())
        return not name.startswith("hydra.") and all(isinstance(each, str | None) for each in values)

    return Overrides(
        lambda name: name in TEXTS, lambda name: re.split("[/@]", name)[0] in groups, is_literal, many
    )


def _is_path(name: str, options: dict[str, Any]) -> bool:
    """Whether an option of composed ones is a path, or is read as one is: as its class says (`opens`)."""
    from ditmoe.config import trust

    parts, section = name.split("."), cast(Any, options)
    if name in PATHS:
        return True
    if len(parts) == 2 and parts[0] == WORDS and parts[1] in SENTENCES:
        return not isinstance(options[WORDS][parts[1]], list)
    for at, part in enumerate(parts):
        with suppress(ValueError):
            if "_target_" in section and ".".join(parts[at:]) in trust.opens(section):
                return True
        if not isinstance(section := section.get(part), dict):
            break
    return False


def sectioned(arguments: Sequence[str], config_name: str) -> list[str]:
    """A command line on which what the command's YAML does not name (`length=64`) is in the section `WORDS`."""
    stated: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / f"{config_name}.yaml"))
    groups = {str(name) for each in stated.pop("defaults") if isinstance(each, dict) for name in each}
    own, done = {*stated, *groups, *os.listdir(config_folder())}, [""]
    for word in arguments:
        match = re.match(r"([^\W\d]\w*)=", word)
        foreign = match is not None and match[1] not in own and done[-1] not in WITH_VALUE
        done.append(f"+{WORDS}.{word}" if foreign else word)
    return done[1:]


def run_name(name: Any) -> str:
    """The name of a run as it stands in a configuration's path, before Hydra makes that folder: it lies in its parent.

    Raises:
        ValueError: if it leads elsewhere, or is one that no screen shows.
    """
    text = str(name)
    parts = text.removesuffix("/").split("/")
    if name is None or isinstance(name, list | dict | ListConfig | DictConfig) or printable(text) != text:
        raise ValueError(f"name must be text that can be printed, got {printable(text)}")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"name must be that of a folder in runs/<modality>, got {text!r}; hydra.run.dir=... puts a run elsewhere"
        )
    return text


OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def sweep_name(words: Any) -> str:
    """The folder of one run of a sweep, which Hydra names after its words: one part of a path, and not too long.

    Words that cannot be one are told apart by a hash behind what is left of them.
    """
    name = file_name(words)
    mark = hashlib.sha256(str(words).encode(errors="surrogatepass")).hexdigest()[:8]
    return name if name == str(words) else f"{name}-{mark}"


OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)


def guard(main: Callable[[], Any], command: str | None = None) -> None:
    """Call `main`; turn a user's mistake into one line and exit code 2, Ctrl-C and SIGTERM into 130.

    Of several processes the first that has something to say says it. What is printed goes through a `Screen`.

    Args:
        command: whose options a misspelt one may have been; None: those of any.
    """
    screen.install()
    try:
        with by_sigterm():
            main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
        if os.environ.get("DITMOE_TRACE"):
            traceback.print_exc()
        if launch.speaks():
            print(f"error: {printable(explain(error, command))}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if is_memory(error):
            if os.environ.get("DITMOE_TRACE"):
                traceback.print_exc()
            if launch.speaks():
                print(f"error: not enough memory: {explain(error) or 'for what was asked'}", file=sys.stderr)
            sys.exit(2)
        if not launch.is_lost(error):
            raise
        if os.environ.get("DITMOE_TRACE"):
            traceback.print_exc()
        if launch.speaks():
            print(f"error: {launch.LOST}", file=sys.stderr)
        sys.stdout.flush()
        os._exit(1)  # no farewell to processes that do not answer


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory is at an end: Python's and NumPy's, torch's on a GPU and on a CPU."""
    kinds = (MemoryError, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError))
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def is_overflow(error: BaseException) -> bool:
    """Whether a number, such as a tensor's bytes, does not fit 64 bits or a float: Python's error, or torch's."""
    signs = ("verflow", "Invalid shape dimension", "Trying to create tensor with negative dimension")
    return isinstance(error, OverflowError) or any(sign in str(error) for sign in signs)


def _refuse_many(name: str) -> None:
    raise ValueError(f"python -m ditmoe.{name} is for one process: start it without torchrun")


def explain(error: BaseException, command: str | None = None) -> str:
    """One line for an error, with what was probably meant of a command."""
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_option(match[1], command)
    if match := re.search(r"Could not find '([\w/]+)/([^'/]+)'", text):
        known = sorted(
            re.findall(r"^\t([^\s_]\S*)$", text, re.MULTILINE)
        )  # _base is not for the command line
        return f"{match[1]}={match[2]} does not exist; {suggest(match[2], known)}"
    if match := re.search(r"Could not override '?(\S+?)'?\.\s*No match in the defaults list", text):
        return unknown_option(match[1], command)
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        key = getattr(error, "full_key", None) or match[1]
        return f"{key} must be given: {key}=..."
    if match := re.search(r"raised while resolving interpolation: (.+)", text):  # by a resolver of ours
        return match[1]
    return " ".join(text.split())


def check_types(config: DictConfig, config_name: str) -> None:
    """Numbers must stay numbers and switches switches.

    Raises:
        ValueError: naming the option, what it must be, and what came.
    """
    hydra_config = HydraConfig.get()
    groups = hydra_config.runtime.choices
    chosen = [o for o in hydra_config.overrides.task if o.lstrip("+~").split("=")[0].split("@")[0] in groups]
    default = hydra.compose(config_name=config_name, overrides=chosen)
    for dotted in (o.lstrip("+~").split("=")[0] for o in hydra_config.overrides.task if o not in chosen):
        expected = OmegaConf.select(default, dotted, throw_on_missing=False)
        got = OmegaConf.select(config, dotted)
        if got is None or expected is None:
            continue
        number = isinstance(got, (int, float)) and not isinstance(got, bool)
        if dotted == "trust":
            named = got if isinstance(got, ListConfig) else [got]
            allowed = isinstance(got, bool) or all(isinstance(each, str) for each in named)
            wanted = None if allowed else "true, false, or a list [a,b] of paths and hub names"
        elif isinstance(expected, bool):
            wanted = None if isinstance(got, bool) else "true or false"
        elif isinstance(expected, int):
            wanted = None if number and isinstance(got, int) else "a whole number"
        else:
            wanted = "a number" if isinstance(expected, float) and not number else None
        several = isinstance(got, str) and "," in got
        if isinstance(expected, ListConfig) and several:
            wanted = "a list [a,b]"
        if wanted:
            more = " (--multirun makes a run of each)" if several else ""
            raise ValueError(f"{dotted} must be {wanted}, got {got!r}{more}")
        if isinstance(OmegaConf.select(default, dotted), DictConfig) and not isinstance(got, DictConfig):
            raise ValueError(f"{dotted} is a section: give {dotted}.<option>=..., got {got!r}")
