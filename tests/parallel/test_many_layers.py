"""A batch that is spread over ranks is one batch: for every router, with the experts at hand or spread as well."""

import pytest
import torch

from tests.many import layers, together
from tests.routers import ROUTERS

UNSPREAD = (
    "diff_moe 1",
    "diff_moe 2",
    "diff_moe 3",
    "timestep",
)  # experts that know their sample; three experts


@pytest.mark.parametrize(("num", "spread"), [(2, False), (2, True), (4, True)])
def test_layers_of_many_equal_those_of_one(num: int, spread: bool) -> None:
    names = [name for name in ROUTERS if not (spread and name in UNSPREAD)]
    one, many = layers(names, False), together(layers, num, names, spread)
    for name in names:
        assert one[name].keys() == many[name].keys()
        for key, value in one[name].items():
            assert torch.allclose(many[name][key], value, atol=2e-5, rtol=1e-4), (name, key)
