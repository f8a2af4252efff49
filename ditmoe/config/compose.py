"""Composes configurations in Python, as a command line does."""

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from ditmoe.config import resolvers  # noqa: F401  (YAML files are written with them)
from ditmoe.config.folders import config_folder


def composed(command: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of a command ("train") with command-line arguments, as plain values."""
    if GlobalHydra.instance().is_initialized():  # within a command
        config = compose(command, overrides=list(words))
    else:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = compose(command, overrides=list(words))
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
