"""First-block caching: exact where nothing may be reused, one block where nothing changed, each sample by itself."""

import pytest
import torch

from ditmoe.diffusion import Sampling
from ditmoe.inference import sample_checkpoint
from ditmoe.nn import FirstBlockCache, Layout
from tests.model.test_times import of_router

X = torch.randn(3, 3, 4, 3, generator=torch.Generator().manual_seed(0))
T, Y = torch.tensor([100.0, 400.0, 800.0]), torch.tensor([0, 1, 3])


def predicted(model, x=X, t=T, cache=None) -> torch.Tensor:
    with torch.no_grad():
        return model(x, t, Y, cache=cache)[0]


def test_a_threshold_of_zero_computes_all() -> None:
    model, cache = of_router("token_choice").eval(), FirstBlockCache(0)
    for t in (T, T, T - 1):
        assert torch.equal(predicted(model, t=t, cache=cache), predicted(model, t=t))
    assert (cache.passes, cache.skipped) == (9, 0)


@pytest.mark.parametrize("router", ["token_choice", "dense", "timestep"])
def test_samples_that_do_not_change_cost_the_first_block(router: str) -> None:
    """And those that do are computed as without a cache, whatever they are drawn with."""
    model, cache = of_router(router).eval(), FirstBlockCache(0.01)
    first = predicted(model, cache=cache)
    assert torch.equal(first, predicted(model))
    runs = []
    model.blocks[1].register_forward_pre_hook(lambda _, args: runs.append(len(args[0])))
    assert torch.allclose(predicted(model, cache=cache), first, atol=1e-5)
    assert (runs, cache.skipped) == ([], 3)
    x = X.clone()
    x[1] = -X[1]
    second = predicted(model, x, cache=cache)
    assert (runs, cache.skipped) == ([1], 5)
    assert torch.allclose(second[1], predicted(model, x)[1], atol=1e-5)
    assert torch.allclose(second[[0, 2]], first[[0, 2]], atol=1e-5)


def test_what_is_reused_is_what_the_other_blocks_added() -> None:
    model, cache = of_router("dense").eval(), FirstBlockCache(1000)
    ends, starts = [], []
    model.blocks[0].register_forward_hook(lambda _, __, out: starts.append(out[0]))
    model.blocks[1].register_forward_hook(lambda _, __, out: ends.append(out[0]))
    model.final.register_forward_pre_hook(lambda _, args: ends.append(args[0]))
    predicted(model, cache=cache)
    predicted(model, X + 1, cache=cache)
    assert torch.equal(ends[-1], starts[1] + (ends[0] - starts[0]))


def test_another_number_of_samples_begins_anew() -> None:
    model, cache = of_router("dense").eval(), FirstBlockCache(1000)
    predicted(model, cache=cache)
    with torch.no_grad():
        assert torch.equal(model(X[:1], T[:1], Y[:1], cache=cache)[0], model(X[:1], T[:1], Y[:1])[0])


def test_what_cannot_be_cached_is_one_line() -> None:
    model = of_router("dense").eval()
    layout = Layout.pack([(4, 3), (2, 3)], torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^first_block_cache must be 0 where samples do not all"):
        model(torch.randn(1, 18, 3), T[:2], Y[:2], layout, FirstBlockCache(0.1))
    for value in (-1, float("nan"), 1e9):
        with pytest.raises(ValueError, match=r"^first_block_cache must be"):
            Sampling(first_block_cache=value)


def test_it_is_off_unless_a_person_says_so(tmp_path) -> None:
    assert Sampling().first_block_cache == 0
    how = {"num": 2, "steps": 3, "scheduler": {"_target_": "diffusers.FlowMatchEulerDiscreteScheduler"}}
    how["scheduler"]["_partial_"] = True
    plain, same, other = (
        sample_checkpoint("starter/image", out=tmp_path / f"{i}.npz", first_block_cache=value, **how)[
            1
        ].read_bytes()
        for i, value in enumerate((None, 0, 1000))
    )
    assert plain == same != other
