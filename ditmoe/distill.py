"""python -m ditmoe.distill checkpoint=runs/image/default out=runs/image/few: distils a model to sample in few steps.

Torch takes seconds to import, so functions import it: a mistake in the command line is answered at once.
"""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditmoe.config import cli
from ditmoe.distributed import launch, say
from ditmoe.finishing import check_finish, check_places, finish, next_words, possible
from ditmoe.outside import printable, real_path

if TYPE_CHECKING:
    from ditmoe.checkpoint import Checkpoint
    from ditmoe.training import Trainer

SECTIONS = ("objective", "optimizer", "parameters", "mesh", "trainer", "finish", "seed")
"""Sections of a run's configuration that distillation needs besides those of sampling."""
NOTHING_MORE = {
    "init": None,
    "upcycle": {"_target_": "ditmoe.pretrained.Upcycling"},
    "lora": {"_target_": "ditmoe.nn.LoRA", "rank": 0},
}
"""Sections of a training configuration that distillation does not use, set to no effect."""
OWN = {
    "workers": None,
    "compile": False,
    "compile_mode": None,
    "save_every": 1000,
    "keep_last": 2,
    "keep_every": 0,
}
"""Trainer options that start processes or fill a disk: not taken from the teacher's configuration, which may come from
a stranger."""


def distill(words: dict[str, Any]) -> None:
    """Train one run that learns from another run's model; resumes an interrupted one."""
    from ditmoe import checkpoint
    from ditmoe.train import run_to_end

    out, ready = Path(words["out"]), partial(_ready, words)
    # Processes of torchrun would not begin anew together.
    many = launch.ranks().size > 1
    trainer, config, unmeasured = (
        ready() if many else checkpoint.unless_dropped(Path(words["checkpoint"]), ready)
    )
    run_to_end(trainer, config, unmeasured)
    again = f"evaluate {shlex.quote(f'checkpoint={out}')}"
    again += " steps=1" if config["model"].get("flow_map") is not None else ""
    asking = next_words(config, out)
    finish(config["finish"], out, again, trainer.step, unmeasured, asking, type(trainer.modality))


def _ready(words: dict[str, Any]) -> tuple["Trainer", dict[str, Any], str]:
    """The trainer with its teacher, its configuration, and why nothing can be evaluated afterwards, if so."""
    from ditmoe import checkpoint
    from ditmoe.checkpoint.fit import describing
    from ditmoe.pretrained.teacher import pinned
    from ditmoe.train import make_modality, make_trainer

    out, teacher = Path(words["out"]), checkpoint.find(words["checkpoint"], parts=("ema", "facts"))
    if real_path(out) == real_path(teacher.run):
        raise ValueError(f"out must be another folder than the run that is learnt from, got {printable(out)}")
    earlier = None
    if checkpoint.exists(out):
        begun = checkpoint.find(out, parts=()).plain.get("config")
        earlier = begun.get("distillation") if isinstance(begun, dict) else None
    teacher = pinned(teacher, earlier)
    with describing(teacher.path):
        config = student(words, teacher)
        modality = make_modality(config, out, teacher.part("facts"))
        config["finish"] = possible(config["finish"], modality)
        unmeasured = check_finish(config, modality)
        check_places(config["finish"], out)
        trainer = make_trainer(config, modality, out, teacher)
    say(f"learning from {teacher.path}: {told(config)}")
    return trainer, config, unmeasured


def student(words: dict[str, Any], teacher: "Checkpoint") -> dict[str, Any]:
    """The student's configuration: the teacher's, with the options of the command.

    Raises:
        ValueError: one line, if the teacher cannot be distilled with these options.
    """
    from ditmoe.config.restore import admitted
    from ditmoe.config.trust import check_openable
    from ditmoe.diffusion import Sampling
    from ditmoe.outside import check_number
    from ditmoe.pretrained.teacher import TOLD, fingerprint

    config, _ = admitted(teacher, words["trust"], *SECTIONS)
    Sampling.of(config)  # checks the values that are used below
    check_openable(config)  # the student saves and trains with it
    check_number(f"optimizer.lr of {teacher.path}", config["optimizer"].get("lr"), 0)
    inside = learnt(words)
    if any(config["model"].get(name) is not None for name in TOLD):
        raise ValueError(f"checkpoint must be a run that was trained, and {teacher.run} was itself distilled")
    if not inside:
        raise ValueError("flow_map or guidance must be given: with both null there is nothing to learn")
    config["model"] |= inside
    config["optimizer"]["lr"] *= words["rate"]
    config["trainer"] |= OWN | {name: value for name, value in words["trainer"].items() if value is not None}
    sampling = config["sampling"]
    config["distillation"] = words["distillation"] | {
        "step": teacher.plain["step"],
        "fingerprint": fingerprint(teacher),
        "interval": list(sampling.get("interval", [0, 1000])),
    }
    if "guidance" in inside:
        low, high = inside["guidance"]
        kept = min(max(sampling["guidance"], low), high)
        config["sampling"] = {**sampling, "guidance": kept, "interval": [0, 1000]}
    if "flow_map" in inside:
        config["scheduler"] = {"_target_": "ditmoe.diffusion.FlowMapScheduler", "_partial_": True}
        config["sampling"] = {**config["sampling"], "steps": words["steps"]}
    config["finish"] = {
        name: config["finish"][name] if v is None else v for name, v in words["finish"].items()
    }
    return config | {"name": printable(Path(words["out"]).name), **NOTHING_MORE}


def learnt(words: dict[str, Any]) -> dict[str, Any]:
    """The options of the model section that say what is distilled into it.

    Raises:
        ValueError: one line, for an option out of range.
    """
    from ditmoe.config.plain_values import check_plain
    from ditmoe.diffusion import check_most_steps, check_steps
    from ditmoe.model.step_embedding import check_weights
    from ditmoe.outside import check_number
    from ditmoe.pretrained.teacher import TOLD

    inside = {name: words[name] for name in TOLD if words[name] is not None}
    check_plain(inside, "flow_map and guidance")
    check_number("rate", words["rate"], above=0)
    if "flow_map" in inside:
        check_steps(words["steps"], check_most_steps("flow_map", inside["flow_map"]))
    if "guidance" in inside:
        check_weights("guidance", inside["guidance"])
    return inside


def told(config: dict[str, Any]) -> str:
    """A short description of what is learnt."""
    model, parts = config["model"], []
    if model.get("flow_map") is not None:
        parts.append(f"steps of any length, for drawings in 1 to {model['flow_map']}")
    if model.get("guidance") is not None:
        parts.append("guidance from {:g} to {:g} in one pass".format(*model["guidance"]))
    return ", ".join(parts)


def main() -> None:
    """Entry point."""
    cli.run(distill, "distill", many=True)


if __name__ == "__main__":
    main()
