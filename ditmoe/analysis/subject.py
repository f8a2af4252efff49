"""The model to analyse: that of a run, or a converted model with a given modality and process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditmoe import checkpoint
from ditmoe.config import build
from ditmoe.config.limits import check_shape
from ditmoe.config.restore import Restored, by_top_k, restore
from ditmoe.config.trust import Trust
from ditmoe.diffusion import Process
from ditmoe.modality import Modality
from ditmoe.model import DiTMoE
from ditmoe.outside import is_regular, printable
from ditmoe.pretrained import weights


@dataclass(frozen=True)
class Subject:
    """A model with its modality and process.

    Attributes:
        make: makes a new model of the same shape, to count its cost.
        folder: of the run or converted model, for the results.
        restored: the run, for drawing samples; None for a converted model.
        step: of training; None for a converted model.
        by_top_k: the router's `top_k`; None if it does not choose by `top_k`.
    """

    model: DiTMoE
    modality: Modality
    process: Process
    make: Callable[[], DiTMoE]
    folder: Path
    restored: Restored | None
    step: int | None
    by_top_k: int | None


def open_subject(
    path: str | Path,
    top_k: int | None = None,
    trusted: Trust = False,
    modality: dict[str, Any] | None = None,
    process: dict[str, Any] | None = None,
) -> Subject:
    """Open a run, or a folder written by `convert` with the given modality and process.

    Args:
        top_k: experts per token in place of the router's own.
        trusted: paths and hub names that the checkpoint may open.
        modality, process: configuration sections, for a converted model only.

    Raises:
        FileNotFoundError, ValueError: with a message of one line.
    """
    path = Path(path)
    if not checkpoint.exists(path) and is_regular(path / weights.CONFIG):
        return _converted(path, top_k, modality, process)
    if modality or process:
        given = "modality" if modality else "process"
        raise ValueError(f"{given} must be left out: a run has its own")
    restored = restore(path, top_k, trusted=trusted)

    def make() -> DiTMoE:
        return build.make_model(restored.config, restored.modality)

    router = by_top_k(restored.config)
    return Subject(
        restored.model, restored.modality, restored.process, make, restored.folder, restored, restored.step,
        None if router is None else router["top_k"],
    )  # fmt: skip


def _converted(
    folder: Path, top_k: int | None, modality: dict[str, Any] | None, process: dict[str, Any] | None
) -> Subject:
    if not modality or not process:
        raise ValueError(
            f"modality and process must be given, as modality=image process=ddpm: {printable(folder)} is a converted "
            "model, which knows neither"
        )
    config = weights.admitted(folder)
    model = weights.load(folder, top_k=top_k)
    adapter = build.make_whole(modality)
    check_shape(adapter.sample_shape)
    own = adapter.tokens(config["model"]["hidden_size"])
    for name in ("in_features", "axes"):
        if (wanted := getattr(model.tokens, name)) != (got := getattr(own, name)):
            what = "numbers of a token" if name == "in_features" else "axes of the token grid"
            raise ValueError(
                f"modality must give the model of {printable(folder)} {wanted} {what}, got {got}"
            )
    if len(adapter.classes) > model.conditioning.num_classes:
        raise ValueError(
            f"modality must have at most the {model.conditioning.num_classes} classes of {printable(folder)}, "
            f"got {len(adapter.classes)}"
        )
    router = by_top_k(config)
    if router is not None and top_k is not None:
        router["top_k"] = top_k
    chosen = None if router is None else router["top_k"]
    return Subject(
        model, adapter, build.make_whole(process), lambda: weights.make(config), folder, None, None, chosen
    )
