"""Command-line arguments: which are paths or text, and whether each has the type of its option."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from ditmoe.checkpoint.atomic import recover
from ditmoe.checkpoint.places import candidates
from ditmoe.config import trust
from ditmoe.config.folders import config_folder, config_folders
from ditmoe.config.known_options import known_options, unknown_option
from ditmoe.config.overrides import Overrides
from ditmoe.outside import at_home, printable

CHECKPOINTS = ("checkpoint", "guidance_model", "init")
SOURCES = (*CHECKPOINTS, "source", "generated", "reference", "train")
"""Options of commands whose value must be an existing path."""
PATHS = (*SOURCES, "out", "autoencoder")
"""Options of commands whose value is a file, a folder or a model on the hub."""
TEXTS = (*PATHS, "name", "licence", "entry")
"""Options of commands whose value is text even if it looks like another type: `out=2024`, `name=a,b`."""
SENTENCES = ("label", "prompt", "negative", "prompts")
"""Options of a conditioning whose value is text, even if it looks like a number, or a list of texts."""
LISTS = ("given", "interval", "dial")
"""Options of commands that accept a list, although their default is none."""
NULLABLE = ("flow_map", "router.router")
"""Numbers and sections that may be null."""
WORDS = "words"
"""Section of a command's configuration for the options that a modality adds (`ditmoe.config.words`)."""
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
"""Hydra's own options that take a value as the next argument."""
ALONE = ("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--info", "-i",
         "--shell-completion", "-sc", "--")  # fmt: skip
"""Hydra's own options that need none. Its --experimental-rerun would load a pickle, which may run any code."""
_NAME = r"[A-Za-z_$][\w$@/-]*(\.[\w$@/-]+)*"
_OPTION = re.compile(rf"[+]{{0,2}}{_NAME}=.*|~{_NAME}(=.*)?", re.ASCII | re.DOTALL)
"""What Hydra's grammar takes for an option and its value."""


def check_paths(words: dict[str, Any]) -> None:
    """Check that options for paths are text (Hydra reads `out=2024` as a number), and that sources exist.

    Raises:
        ValueError, FileNotFoundError: one line.
    """
    for name in PATHS:
        if (value := words.get(name)) is not None and (
            not isinstance(value, str) or "\0" in value or not value
        ):
            raise ValueError(f"{name} must be a path, got {value!r}")
    for name in SOURCES:
        if words.get(name) is not None:
            check_there(name, words[name])


def check_there(name: str, value: str) -> None:
    """Check that a file, a folder or a checkpoint exists, before torch is loaded.

    Raises:
        FileNotFoundError: one line.
    """
    if name not in CHECKPOINTS:
        if not at_home(value).exists():
            raise FileNotFoundError(
                f"{name} must be a file or a folder, but {printable(value)} does not exist"
            )
        return
    recover(path := Path(value))
    if not path.exists():
        try:
            candidates(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(str(error).replace("checkpoint", name, 1)) from error


def read_words(arguments: Sequence[str]) -> list[str]:
    """The arguments, each quoted for Hydra where needed (`ditmoe.config.overrides`).

    Raises:
        ValueError: with one line, for an argument that is no `option=value` and none of Hydra's own options.
    """
    read = overrides(many=any(word in ("-m", "--multirun") for word in arguments))
    words, last = list[str](), ""
    for word in arguments:
        if last not in WITH_VALUE and not (last in ("--info", "-i") and word.isidentifier()):
            check_form(word)
            word = word if word.startswith("-") else read.override(word)
        words.append(word)
        last = word
    if last in WITH_VALUE:
        raise ValueError(f"{last} must be followed by its value")
    return words


def check_form(word: str) -> None:
    """Check that an argument is `option=value` or one of Hydra's own options, whose parser would answer in many lines.

    Raises:
        ValueError: with one line.
    """
    name, equals, _ = word.partition("=")
    known = [*WITH_VALUE, *([] if equals and name != "--info" else ALONE)]
    long = name.startswith("--") and any(each.startswith(name) for each in known)  # abbreviated
    if not (name in known or long if word.startswith("-") else _OPTION.fullmatch(word)):
        shown = printable(word if len(word) <= 80 else f"{word[:80]}...")
        raise ValueError(
            f"an argument must be option=value, without dashes and blanks, got {shown or 'an empty one'}"
        )


def person_words() -> list[str]:
    """The arguments of the running command, as the user would type them, before quoting for a shell.

    Hydra's own options are omitted except --config-dir, which other arguments may depend on.
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
    """The rules by which the arguments of all commands are quoted for Hydra.

    Args:
        many: whether --multirun is given.
    """
    groups = {child.name for folder in config_folders() for child in folder.iterdir() if child.is_dir()}

    def is_literal(name: str) -> bool:
        values = known_options().get(name, ())
        return not name.startswith("hydra.") and all(isinstance(each, str | None) for each in values)

    return Overrides(
        lambda name: name in TEXTS, lambda name: re.split("[/@]", name)[0] in groups, is_literal, many
    )


def is_path_option(name: str, options: dict[str, Any]) -> bool:
    """Whether an option of a composed configuration is read as a path, by its name or its class (`opens`)."""
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
    """Move options that the command's YAML does not name (`length=64`) into the section `WORDS`."""
    stated: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / f"{config_name}.yaml"))
    groups = {str(name) for each in stated.pop("defaults") if isinstance(each, dict) for name in each}
    own, done = {*stated, *groups, *os.listdir(config_folder())}, [""]
    for word in arguments:
        match = re.match(r"([^\W\d]\w*)=", word)
        foreign = match is not None and match[1] not in own and done[-1] not in WITH_VALUE
        done.append(f"+{WORDS}.{word}" if foreign else word)
    return done[1:]


def check_types(config: DictConfig, config_name: str, words: bool = False) -> None:
    """Check that each override keeps its option's type, that `+` adds only known options, and that `~` removes none.

    Args:
        words: whether the command accepts options of a modality, in the section `WORDS`.

    Raises:
        ValueError: naming the option, what it must be, and what it got.
    """
    hydra_config = HydraConfig.get()
    groups = hydra_config.runtime.choices
    names = {o: o.lstrip("+~").split("=")[0] for o in hydra_config.overrides.task}
    chosen = [o for o, name in names.items() if name in groups or name.split("@")[0] in groups]
    default = hydra.compose(config_name=config_name, overrides=chosen)
    known = {*map(str, default), *([WORDS] if words else [])}  # includes `???`, unlike `in`
    for word, dotted in names.items():
        if word in chosen:
            continue
        if word.startswith("~") and "." not in dotted:
            raise ValueError(f"{dotted} cannot be removed, got {word}: set {dotted}=null for no value")
        if dotted.partition(".")[0] not in known:
            raise ValueError(unknown_option(dotted, config_name))
        expected = OmegaConf.select(default, dotted, throw_on_missing=False)
        got = OmegaConf.select(config, dotted)
        if got is None:
            check_null(word, dotted, default)
        elif wanted := kind_of(dotted, expected, got):
            several = isinstance(got, str) and "," in got
            more = " (--multirun makes a run of each)" if several else ""
            raise ValueError(f"{dotted} must be {wanted}, got {got!r}{more}")


def kind_of(dotted: str, expected: Any, got: Any) -> str:
    """The type that an option must have, by its default, for an error; "" if the value `got` is acceptable.

    Args:
        expected: the option's default.
    """
    number = isinstance(got, (int, float)) and not isinstance(got, bool)
    listed = isinstance(got, ListConfig | DictConfig)
    if dotted == "trust":
        named = got if isinstance(got, ListConfig) else [got]
        allowed = isinstance(got, bool) or all(isinstance(each, str) for each in named)
        return "" if allowed else "true, false, or a list [a,b] of paths and hub names"
    if isinstance(expected, bool):
        return "" if isinstance(got, bool) else "true or false"
    if isinstance(expected, int):
        return "" if number and isinstance(got, int) else "a whole number"
    if isinstance(expected, float):
        return "" if number else "a number"
    if isinstance(expected, DictConfig):
        return "" if isinstance(got, DictConfig) else f"a section: give {dotted}.<option>=..."
    if isinstance(expected, ListConfig):
        return "a list [a,b]" if isinstance(got, str) and "," in got else ""
    return "a single value" if listed and "." not in dotted and dotted not in LISTS else ""


def check_null(word: str, dotted: str, default: DictConfig) -> None:
    """Reject null for a section, for a mandatory option, and for a command's own number or switch.

    Raises:
        ValueError: naming the option.
    """
    if word.startswith("~") or dotted in NULLABLE:
        return
    if OmegaConf.is_missing(default, dotted):
        raise ValueError(f"{dotted} must be given: {dotted}=...")
    expected = OmegaConf.select(default, dotted, throw_on_missing=False)
    if isinstance(expected, DictConfig):
        raise ValueError(f"{dotted} must be a section: give {dotted}.<option>=..., got null")
    if isinstance(expected, int | float) and "." not in dotted:
        raise ValueError(
            f"{dotted} must be {'true or false' if isinstance(expected, bool) else 'a number'}, got null"
        )
