"""A batch that is spread over ranks is one batch: for every router, with the experts at hand or spread as well."""

import pytest
import torch

from tests.many import layers, together
from tests.routers import ROUTERS, layer


def spreads(name: str, num: int) -> bool:
    """Whether so many ranks can have a part of the experts each."""
    moe = layer(name)
    return moe.experts.spreadable and moe.router.num_experts % num == 0


@pytest.mark.parametrize(("num", "spread"), [(2, False), (2, True), (4, True)])
def test_layers_of_many_equal_those_of_one(num: int, spread: bool) -> None:
    names = [name for name in ROUTERS if not spread or spreads(name, num)]
    one, many = layers(names, False), together(layers, num, names, spread)
    for name in names:
        assert one[name].keys() == many[name].keys()
        for key, value in one[name].items():
            assert torch.allclose(many[name][key], value, atol=2e-5, rtol=1e-4), (name, key)
