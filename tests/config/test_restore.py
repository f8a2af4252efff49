"""From a checkpoint to a model: made once, and whole."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ditmoe.config import build, limits, restore
from ditmoe.config.compose import composed
from ditmoe.model import backbone
from tests.training.test_trainer import options, trainer


class Scaled(nn.Linear):
    """A layer with a buffer that its constructor computes and no state dict holds."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.register_buffer("scale", torch.full((2,), 5.0), persistent=False)


def test_a_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = trainer(tmp_path, "trainer.steps=1")
    run.run()
    made = []
    initialize = backbone.initialize
    monkeypatch.setattr(backbone, "initialize", lambda model: made.append(model) or initialize(model))
    restored = restore.restore(tmp_path, device=torch.device("cpu"))
    assert made == [restored.model]
    assert not restored.model.training
    averaged, state = run.ema.model.state_dict(), restored.model.state_dict()
    assert averaged.keys() == state.keys()
    assert all(torch.equal(averaged[name].cpu(), state[name]) for name in state)


@pytest.mark.parametrize("router", options("router"))
def test_a_state_dict_holds_every_buffer(router: str) -> None:
    """Else a model restored from it would be made twice."""
    settings = composed("train", ["model=debug", f"router={router}"])
    data_facts = {"classes": ["a"], "mean": [0.0] * 3, "scale": 1.0}
    with torch.device("meta"):
        model = build.make_model(settings, build.make_modality(settings, data_facts))
    assert {name for name, _ in model.named_buffers()} <= set(model.state_dict())


def test_what_no_state_dict_holds_comes_from_the_constructor() -> None:
    with torch.device("meta"):
        planned = Scaled()
    saved = Scaled().state_dict()
    model = restore.materialise(planned, Scaled, "cpu")
    restore.load_weights(model, saved, Path("x.pt"))
    assert model.scale.tolist() == [5.0, 5.0]
    assert torch.equal(model.weight, saved["weight"])


def planned(shape: list[int], *words: str):
    """A model of latents, without memory, and the shape of its samples."""
    settings = composed("train", ["modality=image", *words])
    data_facts = {"classes": ["a"], "shape": shape, "stride": [1, 1], "codec": {}}
    with torch.device("meta"):
        return build.make_model(settings, build.make_modality(settings, data_facts)), shape


@pytest.mark.parametrize(("size", "steps"), [(128, 10_000), (1024, 50)])
def test_few_weights_ask_for_no_hours(size: int, steps: int) -> None:
    """By steps, or by tokens that attend to each other: neither takes memory."""
    small = ["model=debug", "modality.tokens.patch=1"]
    model, shape = planned([4, size, size], *small)
    with pytest.raises(ValueError, match=r"^a sample would take \S+ multiply-adds, of [^\n]* trust=true$"):
        limits.check_work(model, shape, steps)
    limits.check_work(*planned([4, 64, 64], *small), 1000)


@pytest.mark.parametrize("model", ["nano", "g"])
def test_published_models_may_take_as_long_as_they_do(model: str) -> None:
    limits.check_work(*planned([4, 64, 64], f"model={model}"), 1000)
