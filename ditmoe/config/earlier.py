"""Updates configurations of runs that an earlier version of ditmoe wrote."""

from collections.abc import Collection, Mapping
from typing import Any

from ditmoe.config.known_classes import find
from ditmoe.outside.options import parameters

DIFF_MOE, TIME_AWARE = "ditmoe.moe.DiffMoE", "ditmoe.moe.TimeAware"


def renamed(config: Mapping[str, Any], weights: Collection[str]) -> dict[str, Any]:
    """A configuration with the router's current name.

    `TimeAware` was called `DiffMoE` before the paper's DiffMoE was added, whose experts have one more weight.

    Args:
        weights: names of the model's weights.
    """
    router = config.get("router")
    if not isinstance(router, Mapping) or router.get("_target_") != DIFF_MOE:
        return dict(config)
    if any(name.endswith(".experts.expand_bias") for name in weights):
        return dict(config)
    return {**config, "router": {**router, "_target_": TIME_AWARE}}


def completed(earlier: Any, today: Any) -> Any:
    """A section of an earlier configuration, completed with options that were added since.

    They get the default of the class that the section names. Options that are not the class's are added if they are off
    (null or false) today.

    Args:
        today: the same section of the current command.
    """
    if not isinstance(earlier, dict) or not isinstance(today, dict):
        return earlier
    found = {name: completed(value, today.get(name)) for name, value in earlier.items()}
    if earlier.get("_target_") != today.get("_target_"):
        return found
    off = {name: value for name, value in today.items() if value is None or value is False}
    known = off | (defaults(today["_target_"]) if "_target_" in today else {})
    return found | {name: known[name] for name in today if name in known and name not in earlier}


def defaults(target: str) -> dict[str, Any]:
    """Default values of the options of a target, including those that it passes on to a parent class."""
    known = parameters(find(target))[0]
    return {name: each.default for name, each in known.items() if each.default is not each.empty}
