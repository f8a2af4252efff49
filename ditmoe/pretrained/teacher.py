"""The teacher of a distillation: a trained model in a checkpoint."""

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
"""Options of a model that make properties of a sampling step its inputs."""


def fingerprint(teacher: Checkpoint) -> str:
    """A fingerprint of a checkpoint's averaged weights, from the digests of their files in its manifest."""
    files = manifest.read(teacher.path)["files"]
    names = [name for name in files if name.partition("/")[0].partition(".")[0] == "ema"]
    return "-".join(files[name]["sha256"][:16] for name in sorted(names))


def pinned(newest: Checkpoint, earlier: Any) -> Checkpoint:
    """The teacher's checkpoint for a run: when a run resumes, that of the step it started with.

    Args:
        newest: checkpoint of the teacher's run.
        earlier: section "distillation" of the student's run if it resumes, not yet checked.

    Raises:
        ValueError: if that checkpoint no longer exists.
    """
    if not earlier:
        return newest
    step = earlier.get("step") if isinstance(earlier, Mapping) else None
    if type(step) is not int or step < 0:
        raise ValueError(
            f"the run in out= must state the step of its teacher, got {printable(repr(step))}: choose another out="
        )
    if step == newest.plain["step"]:
        return newest
    older = place(newest.run, step)
    if not exists(older):
        raise ValueError(
            f"checkpoint must still hold step {step}, the teacher of the run in out=, but {older} "
            f"does not exist: choose another out="
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
    """Set up the distillation of a model from a teacher.

    Args:
        teacher: opened with its averaged weights.
        config: of the model, with the section "distillation".
        model: the student.
        fresh: whether the run starts now; the student then gets the teacher's weights.

    Raises:
        ValueError: if the teacher's weights are not those that the run started with, or do not fit.
    """
    options: Distillation = build.make_whole(config["distillation"])
    if options.fingerprint != fingerprint(teacher):
        raise ValueError(
            f"{teacher.path} must hold the weights that the run in out= started with, got others"
        )
    with torch.device("meta" if mesh.rank else "cpu"):
        own = build.make_model(without_steps(config), modality)
    if mesh.rank == 0:
        load_weights(own, averaged(teacher), teacher.path)  # with LoRA merged
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
    """Copy all weights of a teacher into its student, whose additional weights start at zero."""
    for name, value in student.state_dict().items():
        if not name.startswith("step_embedding."):
            value.copy_(weights[name])
