"""Starting a run from the weights of another model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ditmoe import checkpoint
from ditmoe.checkpoint.atomic import recover
from ditmoe.config import build
from ditmoe.config.plain_values import LARGEST
from ditmoe.diffusion import torch_generator
from ditmoe.modality import Modality
from ditmoe.model import DiTMoE, transfer
from ditmoe.model.step_embedding import check_weights
from ditmoe.outside import check_number, is_regular, printable
from ditmoe.pretrained.weights import CONFIG, read


@dataclass(frozen=True)
class Upcycling:
    """How experts are made from the dense layers of another model, see `ditmoe.model.transfer`.

    Attributes:
        experts: "copies" of the layers, or groups of their "neurons".
        noise: standard deviation of the noise that is added to each copy.
    """

    experts: str = "copies"
    noise: float = 1e-4

    def __post_init__(self) -> None:
        if self.experts not in ("copies", "neurons"):
            raise ValueError(f"upcycle.experts must be copies or neurons, got {self.experts!r}")
        check_number("upcycle.noise", self.noise, 0)


def start_from(
    source: str,
    target: DiTMoE,
    model: dict[str, Any],
    upcycling: Upcycling = Upcycling(),
    seed: int = 0,
) -> None:
    """Initialise a model with the matching weights of another run, or of a converted checkpoint; prints a report.

    Args:
        source: a run's folder, a checkpoint in it, or a folder that convert wrote.
        target: the model to initialise.
        model: the section "model" of its configuration.
        upcycling: how dense layers become experts.
        seed: of the noise that is added to copies.

    Raises:
        ValueError: if the source's blocks compute something else with the same shapes, or no weights match.
    """
    config, weights = read(source)
    for option, usual in {"num_heads": None, "qk_norm": None, "time_scale": 1.0}.items():
        there, here = (section.get(option, usual) for section in (config["model"], model))
        if there != here:
            raise ValueError(f"init: model.{option} must be that of {source}, {there}, got {here}")
    with build.describing(source):
        there = build.attention_gain(config["model"])
    here = build.attention_gain(model)
    if there != here:
        raise ValueError(
            f"init: model.base_width and base_heads must give the attention scale of {source}, {there:.4g} times the "
            f"default, got {here:.4g}"
        )
    generator = torch_generator("upcycling", seed)
    weights = without_variance(config, weights, source)
    report = transfer(target, weights, upcycling.noise, generator, neurons=upcycling.experts == "neurons")
    dense = config["model"].get("dense_activation")
    if (report.copied or report.split) and dense != model["activation"]:
        raise ValueError(
            f"init: model.activation must be that of the dense layers of {source}, {dense}, got {model['activation']}"
        )
    print(
        "\n".join([f"starting from {printable(source)}", *report.lines(), *inherited(config["model"], model)])
    )


def adopt_facts(source: str, modality: Modality, section: Mapping[str, Any]) -> None:
    """Let a modality adopt the facts of the run that it starts from, if that is of the same kind; prints what.

    Args:
        section: of the modality in the configuration.
    """
    path = Path(source)
    recover(path)
    if is_regular(path / CONFIG):  # converted weights come without data
        return
    there, facts = read_data(path)
    if not isinstance(there, Mapping) or there.get("_target_") != section["_target_"]:
        return
    if told := modality.adopt_facts(facts):
        print(f"{printable(source)}: {told}")


def read_data(path: Path) -> tuple[Any, dict[str, Any]]:
    """The section of the modality in a run's configuration, and the data facts of the run."""

    def newest() -> tuple[Any, dict[str, Any]]:
        found = checkpoint.find(path, parts=("facts",))
        return found.part("config").get("modality"), found.part("facts")

    return checkpoint.unless_dropped(path, newest)


def inherited(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Lines about properties of the source that its weights pass on without the model's options for them."""
    lines = []
    rope, other = ("true" if model.get("rope") else "false" for model in (there, here))
    if rope != other:
        lines.append(f"    trained with model.rope={rope}: with {other} it has to learn positions anew")
    if there.get("guidance") is not None and here.get("guidance") is None:
        low, high = check_weights("model.guidance of what was distilled", there["guidance"])
        lines.append(
            f"    distilled with guidance {low:g} to {high:g}: some of it remains, and guidance= adds to it"
        )
    if there.get("flow_map") is not None and here.get("flow_map") is None:
        lines.append("    distilled for few steps: the weights for the step's length are not used")
    return lines


def without_variance(config: dict[str, Any], weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Remove the variance prediction from published weights, which ditmoe does not train.

    Of the 2 C output channels of each cell, the second half is dropped; the others are unchanged.

    Raises:
        ValueError: naming the option of `source` that does not fit its weights.
    """
    tokens = config.get("tokens") or {}
    if not tokens.get("learn_sigma"):
        return weights
    option = f"tokens.channels in {CONFIG} of {printable(source)}"
    channels: Any = tokens.get("channels")
    check_number(option, channels, 1, LARGEST, whole=True)
    kept = {}
    for name in ("final.linear.weight", "final.linear.bias"):
        shape = weights[name].shape if name in weights else ()
        if not shape or shape[0] % (2 * channels):
            there = f"{shape[0]} rows" if shape else "none"
            raise ValueError(
                f"{option} must be half of the channels that {name} predicts per cell, got {channels} for {there}"
            )
        kept[name] = weights[name].unflatten(0, (-1, 2 * channels))[:, :channels].flatten(0, 1)
    return weights | kept
