"""Runs each command under Hydra; arguments are checked before anything is loaded."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ditmoe.config import resolvers  # noqa: F401  (YAML files are written with these resolvers)
from ditmoe.config.command_line import check_paths, check_types, is_path_option, read_words, sectioned
from ditmoe.config.errors import guard, is_overflow
from ditmoe.config.folders import config_folder
from ditmoe.config.made_folders import empty_folders, leaving_none_empty
from ditmoe.config.overrides import mark_paths
from ditmoe.config.plain_values import check_levels
from ditmoe.config.told_folders import check_told
from ditmoe.distributed import launch
from ditmoe.outside import check_numbers, largest_words, using_device


def run(
    command: Callable[[dict[str, Any]], None], config_name: str, many: bool = False, words: bool = False
) -> None:
    """Run one entry point under Hydra with the arguments of the command line.

    A user error ends in one line on stderr and exit code 2; DITMOE_TRACE=1 also prints the traceback.

    Args:
        many: whether the command can share its work among the processes of torchrun.
        words: whether it accepts options of a modality, which are put into the section `command_line.WORDS`.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    before = empty_folders(Path("runs"))

    def read() -> None:
        if launch.world() > 1 and not many:
            raise ValueError(f"python -m ditmoe.{config_name} is for one process: start it without torchrun")
        read_in = read_words(sys.argv[1:])
        check_told(sys.argv[1:])
        sys.argv[1:] = read_in
        if words:
            sys.argv[1:] = sectioned(sys.argv[1:], config_name)

    def main(config: DictConfig) -> None:
        made = Path(HydraConfig.get().runtime.output_dir)  # Hydra creates it before anything is checked
        with leaving_none_empty(made, before):
            guard(lambda: _checked(config), config_name)  # inside of Hydra, which would add lines of its own

    def _checked(config: DictConfig) -> None:
        check_types(config, config_name, words)
        options = cast(dict, OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
        check_levels(options)
        mark_paths(options, HydraConfig.get().overrides.task, lambda name: is_path_option(name, options))
        check_numbers(options)
        check_paths(options)
        with using_device(options.pop("device", "auto")), launch.processes():
            try:
                command(options)
            except (OverflowError, RuntimeError, TypeError) as error:  # torch raises any of these
                if not is_overflow(error):
                    raise
                raise ValueError(
                    f"the numbers are too large for any machine: {largest_words(options)}"
                ) from error

    guard(read, config_name)
    under_hydra = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)
    guard(under_hydra(main), config_name)
