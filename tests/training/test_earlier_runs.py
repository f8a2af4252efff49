"""Runs that an earlier version made go on and are sampled, although options came and a router's name went."""

import copy
from pathlib import Path
from typing import Any

import pytest

from ditmoe import checkpoint
from ditmoe.config.earlier import completed, renamed
from ditmoe.config.restore import restore
from ditmoe.moe import TimeAware
from ditmoe.training.resume import known_facts, resume
from tests.training.test_trainer import trainer

NEW = {
    "modality": ("captions",),
    "model": (
        "cross_layers",
        "modulation",
        "expert_std",
        "base_width",
        "base_heads",
        "keep_router_logits",
    ),
}
"""Options that came."""


def test_an_earlier_run_goes_on_and_is_sampled(tmp_path: Path) -> None:
    options = ["router=time_aware", "model.cross_layers=[1]"]
    first, settings = trainer(tmp_path, "trainer.steps=1", *options)
    today = copy.deepcopy(settings)
    for section, names in NEW.items():
        for name in names:
            del settings[section][name]
    settings["router"]["_target_"] = "ditmoe.moe.DiffMoE"
    del settings["upcycle"]
    first.run()  # which keeps the settings as they now are
    assert "captions" not in checkpoint.find(tmp_path).part("config")["modality"]
    assert type(restore(tmp_path).model.routers[0]) is TimeAware
    assert known_facts(tmp_path, today)

    changed, other = trainer(tmp_path, "trainer.steps=2", *options, "model.modulation=scale")
    with pytest.raises(ValueError, match="another model"):
        resume(changed, other)
    second, today = trainer(tmp_path, "trainer.steps=2", *options)
    resume(second, today)
    assert second.step == 1
    assert checkpoint.find(tmp_path).part("config") == today


def test_todays_diff_moe_keeps_its_name() -> None:
    config = {"router": {"_target_": "ditmoe.moe.DiffMoE"}}
    assert renamed(config, ["blocks.0.feed_forward.experts.expand_bias"]) == config
    assert renamed({"router": None}, []) == {"router": None}


@pytest.mark.parametrize(
    ("today", "is_same"),
    [
        ({"a": 1, "new": None, "other": False}, True),
        ({"a": 1, "new": 0}, False),
        ({"a": 1, "inner": {"_target_": "ditmoe.moe.TokenChoice", "top_k": 2, "balance": 0.01}}, False),
        ({"a": 2}, False),
    ],
)
def test_options_without_a_class_are_missing_only_where_they_are_off(
    today: dict[str, Any], is_same: bool
) -> None:
    assert (completed({"a": 1}, today) == today) is is_same


def test_a_missing_option_is_its_classs_default() -> None:
    earlier = {"_target_": "ditmoe.moe.TokenChoice", "num_experts": 8, "top_k": 2}
    assert completed(earlier, earlier | {"noise": 0.0, "score": "sigmoid"})["score"] == "softmax"
    assert completed(earlier, earlier | {"noise": 0.0}) == earlier | {"noise": 0.0}
    masked = {"_target_": "ditmoe.model.MaskedDiTMoE"}
    assert completed(masked, masked | {"cross_layers": [1]})["cross_layers"] is None, (
        "an option of its parent"
    )
    assert completed(earlier, earlier | {"_target_": "ditmoe.moe.Soft", "noise": 0.0}) == earlier
