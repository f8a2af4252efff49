"""The data facts of a checkpoint, which may be a stranger's."""

from typing import Any

import pytest

from modalities.pointcloud.adapter import _numbers


@pytest.mark.parametrize(
    ("name", "value"), [("scale", "x\nerror: forged"), ("scale", "2"), ("scale", None), ("mean", "123")]
)
def test_what_is_no_number_is_named(name: str, value: Any) -> None:
    facts = {"classes": ["chair"], "mean": [0.0, 0.0, 0.0], "scale": 1.0}
    assert _numbers(facts)["scale"] == 1
    with pytest.raises(ValueError, match=f"the {name} of the points must be a finite number, got") as said:
        _numbers(facts | {name: value})
    assert "\n" not in str(said.value)
