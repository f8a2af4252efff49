"""The trained model that another one is distilled from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ditmoe.checkpoint import Checkpoint, exists, manifest, place
from ditmoe.checkpoint.store import find
from ditmoe.config import build
from ditmoe.config.restore import averaged, load_weights
from ditmoe.diffusion import Process
from ditmoe.modality import Modality
from ditmoe.model import DiTMoE
from ditmoe.outside import printable
from ditmoe.parallel import Mesh
from ditmoe.training import Distillation, Teaching

TOLD = ("flow_map", "guidance")
"""Options of a model by which it is told of its steps."""


def fingerprint(teacher: Checkpoint) -> str:
    """Of a checkpoint's averaged weights: the digest that its manifest states of their files."""
    files = manifest.read(teacher.path)["files"]
    names = [name for name in files if name.partition("/")[0].partition(".")[0] == "ema"]
    return "-".join(files[name]["sha256"][:16] for name in sorted(names))


def pinned(newest: Checkpoint, earlier: Any) -> Checkpoint:
    """The checkpoint that a run goes on to learn from: of the step that it began with.

    Args:
        newest: of the teacher's run.
        earlier: section "distillation" of the run, if it began before, whatever it holds.

    Raises:
        ValueError: if that checkpoint is no longer there.
    """
    if not earlier:
        return newest
    step = earlier.get("step") if isinstance(earlier, Mapping) else None
    if type(step) is not int or step < 0:
        raise ValueError(
            f"the run in out= must say of which step it learns, got {printable(repr(step))}: take another out="
        )
    if step == newest.plain["step"]:
        return newest
    older = place(newest.run, step)
    if not exists(older):
        raise ValueError(
            f"checkpoint must still hold step {step}, of which the run in out= began to learn, but {older} "
            f"is not there: take another out="
        )
    return find(older, parts=("ema", "facts"))


def teach(
    teacher: Checkpoint,
    config: Mapping[str, Any],
    modality: Modality,
    process: Process,
    model: DiTMoE,
    mesh: Mesh,
    fresh: bool,
) -> Teaching:
    """What a model is to learn of a teacher, whose weights it starts with if it is fresh.

    Args:
        teacher: opened with its averaged weights.
        config: of the model, with the section "distillation".

    Raises:
        ValueError: if the teacher is of other weights than the run began to learn from, or does not fit.
    """
    options: Distillation = build.make_whole(config["distillation"])
    if options.fingerprint != fingerprint(teacher):
        raise ValueError(f"{teacher.path} holds other weights than the run in out= began to learn from")
    with torch.device("meta" if mesh.rank else "cpu"):
        own = build.make_model(without_steps(config), modality)
    if mesh.rank == 0:
        load_weights(own, averaged(teacher), teacher.path)  # with what LoRA learnt
        if fresh:
            adopt(model, own.state_dict())
    own = own.eval().requires_grad_(False)
    if mesh.world == 1:
        own = own.to(next(model.parameters()).device)
    assert model.step_embedding is not None
    return Teaching(options, own, model.step_embedding, process, model.tokens, mesh.world)


def without_steps(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the teacher's model."""
    return {**config, "model": {name: v for name, v in config["model"].items() if name not in TOLD}}


@torch.no_grad()
def adopt(student: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a student all weights of its teacher; what it has besides starts at zero."""
    for name, value in student.state_dict().items():
        if not name.startswith("step_embedding."):
            value.copy_(weights[name])
