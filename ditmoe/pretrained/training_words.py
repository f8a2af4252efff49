"""What to type to go on training converted weights: the options that make a model of their architecture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ditmoe.config.folders import config_folder
from ditmoe.pretrained.weights import admitted, is_flow

SIZE = ("hidden_size", "depth", "num_heads")
PUBLISHED = ("s", "b", "l", "xl", "g")
"""Names of `configs/model/` that are sizes of DiT-MoE."""
EXPERTS, DENSE = ("expert_ratio", "shared_ratio", "activation"), ("dense_ratio", "dense_activation")


def words_to_start_from(folder: str | Path) -> list[str]:
    """Words of `python -m ditmoe.train modality=image` for a model that convert wrote; none if it is not of images."""
    config = admitted(Path(folder))
    model, router, tokens = config["model"], config["router"], config["tokens"]
    if "channels" not in tokens:
        return []
    defaults = {name: _read(f"model/{name}") for name in PUBLISHED}
    name = next((n for n, own in defaults.items() if all(own[key] == model[key] for key in SIZE)), "s")
    words = [f"model={name}", *_differing("model", model, defaults[name], _used(config))]
    if router is None:
        words.append("router=dense")
    else:
        words += _differing("router", router, _read("router/token_choice"), ("num_experts", "top_k"))
    words += _differing("modality.tokens", tokens, _read("tokens/latents"), ("patch",))
    process = (
        ("flow_matching", "process.prediction=velocity") if is_flow(config) else ("ddpm", "scheduler=dpmpp")
    )
    return [*words, f"process={process[0]}", process[1]]


def _used(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The options of the model that this architecture makes use of."""
    model = config["model"]
    layers = (*SIZE, "qk_norm", "time_scale")
    if config["router"] is None:
        return (*layers, *DENSE)
    if len(model["moe_layers"]) == model["depth"]:
        return (*layers, *EXPERTS)
    return (*layers, "moe_layers", *EXPERTS, *DENSE)


def _read(name: str) -> dict[str, Any]:
    """A YAML file of `configs/`, on top of its `_base` if it has one."""
    file = config_folder() / f"{name}.yaml"
    own: Any = OmegaConf.to_container(OmegaConf.load(file))
    bases = [f"{file.parent.name}/{base}" for base in own.pop("defaults", ()) if base == "_base"]
    return {key: value for base in bases for key, value in _read(base).items()} | own


def _differing(
    section: str, here: Mapping[str, Any], there: Mapping[str, Any], names: tuple[str, ...]
) -> list[str]:
    def typed(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")

    return [f"{section}.{name}={typed(here[name])}" for name in names if here[name] != there[name]]
