"""Guidance away from a weaker model: nothing where it is the model itself, exact for Gaussians, one view for both."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from benchmarks.quality.guidance import best, grid, passes
from benchmarks.quality.samplers import MEAN, Gaussian
from ditmoe.conditioning import Condition
from ditmoe.config.restore import restore
from ditmoe.config.weaker import Meaning
from ditmoe.diffusion import DDPM, FlowMatching, denoise, make_scheduler
from ditmoe.given import Given
from ditmoe.inference import model_words, sample_checkpoint
from modalities.pointcloud import PointCloud
from tests.diffusion.test_given import drawn

FLOW = FlowMatching("velocity")


def sampled(model, **options) -> Tensor:
    noise = torch.randn(4, len(MEAN), generator=torch.Generator().manual_seed(0))
    scheduler = make_scheduler(FlowMatchEulerDiscreteScheduler, FLOW)
    asked = Condition({}, torch.zeros(4, dtype=torch.bool))
    return denoise(model, FLOW, scheduler, noise, asked, steps=12, **options)


class Moved(Gaussian):
    """The same Gaussian around another mean."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__(FLOW)
        self.mean = mean

    def forward(self, x: Tensor, t: Tensor, y: Condition) -> tuple[Tensor, list]:
        a = 1 - t[:, None] / 1000
        still = super().forward(x - a * (self.mean - MEAN), t, y)[0]  # e - x0, of which the mean of x0 moves
        return still - (self.mean - MEAN), []


def test_away_from_itself_is_no_guidance_bit_for_bit() -> None:
    model = Gaussian(FLOW)
    assert torch.equal(sampled(model, weaker=model, guidance=3.0), sampled(model))


def test_away_from_a_gaussian_is_the_gaussian_further_on() -> None:
    """Predictions are linear in the mean, so guidance w from m0 to m1 draws what a model of m0 + w (m1 - m0) does."""
    weak, strong = MEAN - 0.3, MEAN + 0.1
    guided = sampled(Moved(strong), weaker=Moved(weak), guidance=2.5)
    assert torch.allclose(guided, sampled(Moved(weak + 2.5 * (strong - weak))), atol=1e-4)
    outside = sampled(Moved(strong), weaker=Moved(weak), guidance=2.5, interval=(0, 0))
    assert torch.equal(outside, sampled(Moved(strong)))


def test_both_see_the_same_of_what_is_given() -> None:
    """Samples, times and condition are one; so is the guidance by what is given, which is the model's own."""
    known = torch.zeros(1, 1, 2, dtype=torch.bool)
    known[..., 0] = True
    given = Given(torch.full((8, 1, 2), 0.5), known, places=known[0])
    seen: list[tuple] = []

    class Weaker(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, asked: Condition) -> tuple[Tensor]:
            seen.append((x, t, asked))
            return (torch.zeros_like(x),)

    guided, model = drawn("flow_euler", FLOW, given, weaker=Weaker(), guidance=2.0)
    assert torch.equal(guided[..., 0], given.x[..., 0])
    assert len(seen) == len(model.told)
    for (_, t, asked), told in zip(seen, model.told, strict=True):
        assert torch.equal(t, told)
        assert not asked.null.any()
    plain, _ = drawn("flow_euler", FLOW, given, guidance=1.0)
    same, _ = drawn("flow_euler", FLOW, given, weaker=model, guidance=2.0)
    assert torch.equal(same, plain)


@pytest.mark.parametrize("name", ["image", "pointcloud", "video"])
def test_a_checkpoint_away_from_itself(name: str, tmp_path: Path) -> None:
    """Of every modality, with classes: to the bit what is drawn without guidance."""
    how = {"num": 2, "steps": 2}
    files = [
        sample_checkpoint(f"starter/{name}", out=tmp_path / f"{i}.npz", **how, **more)[1]
        for i, more in enumerate(({"guidance": 1.0}, {"guidance": 2.0, "guidance_model": f"starter/{name}"}))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_cannot_be_led_away_from_is_one_line(tmp_path: Path) -> None:
    other = Condition({}, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^negative must be left out"):
        sampled(Gaussian(FLOW), weaker=Gaussian(FLOW), guidance=2.0, negative=other)
    distilled = Gaussian(FLOW)
    distilled.step_embedding = SimpleNamespace()
    with pytest.raises(ValueError, match=r"^guidance_model must be left out: .*distilled"):
        sampled(Gaussian(FLOW), weaker=distilled, guidance=2.0)
    for words, line in {
        (
            "starter/image",
            2.0,
        ): "guidance_model must be of the modality pointcloud, got image of starter/image",
        ("starter/pointcloud", 1.0): "guidance must differ from 1 with guidance_model",
    }.items():
        with pytest.raises(ValueError, match=line):
            sample_checkpoint(
                "starter/pointcloud", num=1, guidance_model=words[0], guidance=words[1], out=tmp_path
            )


def test_a_weaker_model_must_mean_the_same() -> None:
    facts = {"classes": ["a"], "codec": {"basis": torch.eye(2)}}
    own = Meaning("image", [4, 2, 2], facts, FLOW, {"_target_": "x"})
    own.check_weaker(
        Meaning("image", (4, 2, 2), facts, FlowMatching("velocity", mean=1.0), {"_target_": "x"}), "it"
    )
    for other, line in (
        (Meaning("image", [4, 2, 3], facts, FLOW, {}), "shape"),
        (Meaning("image", [4, 2, 2], facts | {"codec": {"basis": -torch.eye(2)}}, FLOW, {}), "same codec"),
        (Meaning("image", [4, 2, 2], facts | {"classes": ["b"]}, FLOW, {}), "same classes"),
        (Meaning("image", [4, 2, 2], facts, FlowMatching("residual"), {}), "another process"),
        (Meaning("image", [4, 2, 2], facts, DDPM(), {}), "another process"),
        (Meaning("image", [4, 2, 2], facts, FLOW, {"_target_": "y"}), "same conditioning"),
    ):
        with pytest.raises(ValueError, match=f"^guidance_model must .*{line}"):
            own.check_weaker(other, "it")


def test_an_earlier_checkpoint_means_the_same() -> None:
    """Facts that are read twice from a disk are compared by their numbers."""
    restored = restore("starter/image")
    restored.meaning.check_weaker(restore("starter/image").meaning, "starter/image")


def test_what_costs_nothing_is_refused_before_anything_is_opened_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words first, then checkpoints, then what is given."""
    opened: list[str] = []
    own, parts = model_words.restore, PointCloud.parts

    def watched(path: str, *words: Any, **more: Any) -> Any:
        opened.append(path)
        return own(path, *words, **more)

    def read(*words: Any, **more: Any) -> Any:
        opened.append("given")
        return parts(*words, **more)

    monkeypatch.setattr(model_words, "restore", watched)
    monkeypatch.setattr(PointCloud, "parts", read)
    scan, first, other = tmp_path / "scan.npy", "starter/pointcloud", "starter/image"
    np.save(scan, np.random.default_rng(0).normal(size=(50, 3)))
    how: dict[str, Any] = {"num": 1, "given": scan, "out": tmp_path / "out"}
    for words, line, costs in (
        ({"steps": 0, "guidance_model": other}, "steps must be", []),
        ({"weights": "int4"}, "weights must be", []),
        ({"guidance": 1.0, "guidance_model": first}, "guidance must differ from 1", [first]),
        ({"guidance_model": other}, "guidance_model must be of the modality", [first, other]),
        ({"guidance_model": first, "chair": 1}, "chair is not an option", [first, first]),
        ({"place": "nowhere"}, "place must be", [first, "given"]),
    ):
        opened.clear()
        with pytest.raises(ValueError, match=line):
            sample_checkpoint(first, **how, **words)
        assert opened == costs


def test_the_study_chooses_the_nearest_that_still_shows_what_was_asked_for() -> None:
    own = {"fd/pixels": 2.0, "classes/agreement": 0.9, "interval": {"classes/agreement": (0.8, 1.0)}}
    words = list(grid([1, 2], [(0, 1000), (0, 500)]))
    assert [passes(each, 10) for each in words] == [10, 20, 15]  # no guidance is drawn once
    found = [
        {"fd/pixels": fd, "classes/agreement": shown} for fd, shown in ((0.1, 0.7), (1.0, 0.8), (1.5, 1.0))
    ]
    assert best(list(zip(words, found, strict=True)), own) == words[1]
