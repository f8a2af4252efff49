"""Resuming a run in the same folder."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ditmoe import checkpoint
from ditmoe.config.earlier import completed, renamed
from ditmoe.outside import printable
from ditmoe.training.trainer import Trainer

FIXED = (
    "modality",
    "model",
    "router",
    "conditioning",
    "process",
    "objective",
    "optimizer",
    "parameters",
    "lora",
    "distillation",
    "seed",
)
"""Sections that must not change between a run and its continuation."""
MAY_CHANGE = ("lr", "examples", "states")
"""Their options that may: learning rate, example captions (found in the data), path of cached text embeddings."""


def known_facts(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The data facts in the run's checkpoint; None for a new run, or one of another modality."""
    if not checkpoint.exists(folder):
        return None
    found = checkpoint.find(folder, parts=("facts",))
    earlier = completed(found.part("config").get("modality"), config["modality"])
    return found.part("facts") if earlier == config["modality"] else None


def resume(trainer: Trainer, config: dict[str, Any]) -> None:
    """Resume from the run's newest complete checkpoint.

    Raises:
        ValueError: if the run in this folder is a different one, or all its checkpoints are damaged.
    """
    found = checkpoint.find(trainer.folder, ranks=trainer.ranks)
    try:
        earlier = completed(renamed(found.part("config"), found.tensors["model"]), config)
        idle = () if trainer.model.conditioning.gives_tokens else ("cross_layers",)
        earlier.setdefault("lora", {**config["lora"], "rank": 0})  # checkpoints from before LoRA
        for section in FIXED:
            there, here = fixed(earlier.get(section), idle), fixed(config.get(section), idle)
            if there != here:
                raise ValueError(
                    f"{trainer.folder} holds a run with another {section}{differing(there, here)}: give this one its "
                    "own name=..., or remove the folder"
                )
        trainer.resume(found)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{found.path} is not the state of a run: {type(error).__name__}: {error}"
        ) from error
    done = trainer.step >= trainer.options.steps
    print(
        f"{printable(trainer.folder)} is trained; raise trainer.steps= to continue, or choose another name="
        if done
        else f"going on from step {trainer.step}"
    )


def fixed(section: Any, idle: Collection[str] = ()) -> Any:
    """A section without options that may change, and without those that are `idle` in this model."""
    if not isinstance(section, dict):
        return section
    return {name: value for name, value in section.items() if name not in (*MAY_CHANGE, *idle)}


def differing(there: Any, here: Any) -> str:
    """The first option in which two sections differ, with its value there, for an error; "" if it is no plain one."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name, value in there.items():
            if value != here.get(name):
                inner = differing(value, here.get(name))
                return f".{name}{inner}" if isinstance(value, dict) else f".{name} ({printable(value)[:60]})"
    return ""
