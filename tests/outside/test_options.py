"""Numbers that are none, counts that no machine holds, options that a class does not take: one line, at the start."""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ditmoe import train
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.config.restore import restore
from ditmoe.export import export
from ditmoe.inference import draw_from, evaluate_checkpoint, sample_checkpoint
from ditmoe.moe import Sinkhorn, TokenChoice
from ditmoe.outside import check_number, check_numbers
from ditmoe.outside.options import Part, call, check_options, fits, in_words
from ditmoe.pretrained.published import Architecture
from ditmoe.training import Trainer

TINY = {
    "pointcloud": [
        "model=debug",
        "modality.tokens.resolution=8",
        "modality.num_points=64",
        "sampling.steps=2",
    ],
    "image": ["modality=image", "model=debug", "trainer.batch_size=2", "sampling.steps=2"],
    "video": ["modality=video", "model=debug", "trainer.batch_size=2", "modality.codec.steps=0"],
}


def words(kind: str, *more: str) -> dict[str, Any]:
    """The configuration of a tiny run with these words."""
    return composed("train", [*TINY[kind], "trainer.steps=1", "finish.num=0", *more])


def start(folder: Path, kind: str, *more: str) -> Trainer:
    """What `train` does before its first step."""
    config = words(kind, *more)
    check_numbers(config)
    modality = build.make_modality(config)
    train.check_finish(config, modality)
    return train.make_trainer(config, modality, folder)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("optimizer.lr=nan", "optimizer.lr must be a finite number, got nan"),
        ("lora.alpha=1e-320", "lora.alpha must be 0, or at least 1e-30 in size, got 1e-320"),
        ("optimizer.lr=-1e-40", "optimizer.lr must be 0, or at least 1e-30 in size, got -1e-40"),
        ("sampling.guidance=inf", "sampling.guidance must be a finite number, got inf"),
        ("sampling.interval=[nan,1000]", "sampling.interval.0 must be a finite number"),
        ("sampling.interval=[900,100]", "the end of interval must be between 900 and 1000, got 100"),
        *[
            (f"+{name}._partial_=true", f"the section of {kind} must be complete, got _partial_: true")
            for name, kind in [
                ("modality", "modalities.pointcloud.PointCloud"),
                ("model", "ditmoe.model.DiTMoE"),
                ("objective", "ditmoe.diffusion.Objective"),
                ("trainer", "ditmoe.training.Options"),
                ("mesh", "ditmoe.parallel.Mesh"),
                ("lora", "ditmoe.nn.LoRA"),
                ("process", "ditmoe.diffusion.FlowMatching"),
                ("parameters", "ditmoe.training.ParameterGroups"),
            ]
        ],
        (
            "scheduler._partial_=false",
            "scheduler FlowAncestralScheduler is made later: it must say _partial_: true",
        ),
        ("sampling.guidance=1e30", "guidance must be between -1000 and 1000"),
        ("sampling.steps=100000000000", "steps must be between 1 and 10000"),
        ("router.balance=nan", "router.balance must be a finite number"),
        ("seed=-1", "seed must be between 0 and 9223372036854775807, got -1"),
        (
            "trainer.steps=9223372036854775808",
            "trainer.steps must be a whole number of 64 bits at most, got one of 64",
        ),
        ("seed=18446744073709551616", "seed must be between 0 and 9223372036854775807"),
        ("modality.evaluation.seed=-1", "modality.evaluation.seed must be between 0"),
        ("trainer.warmup=-1", "trainer.warmup must be at least 0, got -1"),
        ("trainer.save_every=-1", "trainer.save_every must be at least 0, got -1"),
        ("trainer.clip=0", "trainer.clip must be above 0, got 0"),
        ("trainer.ema_decay=2", "trainer.ema_decay must be at least 0 and below 1, got 2"),
        ("trainer.condition_dropout=2", "trainer.condition_dropout must be between 0 and 1, got 2"),
        ("model.depth=0", "depth must be at least 1, got 0"),
        ("model.depth=20000", "depth must be between 1 and 10000"),
        ("model.hidden_size=0", "hidden_size must be at least 1, got 0"),
        (
            "model.hidden_size=4000000",
            "attention matrices of hidden_size=4000000 and depth=2 need more than 512000 GB",
        ),
        ("modality.tokens.fine=1000000", "fine * resolution must be between 1 and 65536"),
        ("modality.tokens.resolution=65536", "65536^3 places of a grid of resolution=65536 need more than"),
        ("modality.tokens.features=1000000000", "weights for features=1000000000 and patch="),
        ("modality.tokens.width=0", "width must be at least 1, got 0"),
        ("scheduler.shift=0", "shift must be between 1e-06 and 1000000.0, got 0"),
        ("scheduler.interval=[1]", "interval must be two shares of noise, got [1]"),
        ("finish.num=-1", "finish.num must be at least 0, got -1"),
        ("finish.num=1000000000000", "1000000000000 samples of shape (64, 3), 32 at a time, need more than"),
    ],
)
def test_numbers_that_make_no_sense(tmp_path: Path, word: str, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        start(tmp_path, "pointcloud", word)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (
            "modality.tokens._target_=modalities.pointcloud.VoxelTokens",
            "modalities.pointcloud.VoxelTokens does not take features, width, fine, points, given; "
            "it takes hidden_size, resolution, patch, extent, kept",
        ),
        ("modality._target_=modalities.pointcloud.Cloud", "modalities.pointcloud.Cloud cannot be found"),
        ("optimizer._target_=math.pi", "math.pi is no class, but a float"),
        (
            "modality.tokens=abc",
            "tokens of modalities.pointcloud.PointCloud must be a section with a _target_",
        ),
        ("+modality.evaluation.foo=1", "modality.evaluation does not take foo; it takes"),
        ("modality.evaluation.workers=many", "workers of modality.evaluation must be a whole number or null"),
        ("modality.preparation.split=3", "split of modality.preparation must be a list of numbers, got 3"),
        ("+optimizer.foo=1", "torch.optim.AdamW does not take foo; it takes params, lr"),
        ("optimizer.betas=[0.9]", "betas of torch.optim.AdamW must be a list, got [0.9]"),
        ("+optimizer.eps=tiny", "eps of torch.optim.AdamW must be a number, got 'tiny'"),
        ("router.score=3", "score of ditmoe.moe.TokenChoice must be text, got 3"),
        ("~router.num_experts", "ditmoe.moe.TokenChoice must be given num_experts"),
        ("model.window=3", "window of ditmoe.model.DiTMoE must be a list of whole numbers or null, got 3"),
        ("+sampling.foo=3", "sampling does not take foo; it takes steps, guidance, interval"),
        ("+finish.foo=3", "finish does not take foo; it takes evaluate, num"),
        ("~finish.num", "finish must be given num"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, word: str, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        start(tmp_path, "pointcloud", word)


def few_pictures(folder: Path) -> str:
    """Class folders whose splits have pictures for training and one for tests."""
    for split, count in {"train": 4, "test": 1}.items():
        (folder / split / "cat").mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (i, 0, 0)).save(folder / split / "cat" / f"{i}.png")
    return f"modality.data.root={folder}"


def few_clouds(folder: Path) -> str:
    """A class without a test split."""
    for i in range(4):
        (folder / "chair" / "train").mkdir(parents=True, exist_ok=True)
        np.save(folder / "chair" / "train" / f"{i}.npy", np.random.default_rng(i).normal(size=(128, 3)))
    return f"modality.data.root={folder}"


@pytest.mark.parametrize(
    ("kind", "more", "line"),
    [
        ("pointcloud", "modality.evaluation.emd=exact", "emd must be one of"),
        ("pointcloud", "modality.evaluation.normalisation=box", "normalisation must be one of"),
        ("image", "modality.evaluation.features=inception", "FID needs the weights"),
        ("video", "modality.evaluation.preset=vgg", "preset must be one of"),
        ("video", "modality.evaluation.frames=0", "frames and stride must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_said_before_training(
    tmp_path: Path, kind: str, more: Any, line: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        start(tmp_path, kind, more)
    assert "finish.evaluate=false" in str(caught.value)
    if kind != "video":
        start(tmp_path, kind, more, "finish.evaluate=false")


@pytest.mark.parametrize(
    ("kind", "make", "line"),
    [
        ("pointcloud", few_clouds, "an evaluation needs at least 2 real clouds, test has 0"),
        ("image", few_pictures, "an evaluation needs at least 2 real pictures, test has 1"),
    ],
)
def test_data_too_few_to_measure_are_trained_on(
    tmp_path: Path, kind: str, make: Callable[[Path], str], line: str
) -> None:
    config = words(kind, make(tmp_path / "data"))
    modality = build.make_modality(config)
    assert train.check_finish(config, modality) == line
    assert "too small to measure" in modality.understood()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run."""
    folder = tmp_path_factory.mktemp("run")
    assert start(folder, "pointcloud", "trainer.preview_every=0").run()
    return folder


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    """One of them is enough for nothing to be drawn, measured or exported, and its tensor is named."""
    trainer = start(tmp_path / "bad", "pointcloud")
    with torch.no_grad():
        trainer.ema.model.blocks[1].attention.qkv.weight[3, 4] = value  # type: ignore[union-attr, operator, index]
    trainer.step = 1
    with pytest.raises(
        ValueError, match=r"^step 1 is not saved, since ema/blocks\.1\.attention\.qkv\.weight holds"
    ):
        trainer.save()
    trainer.saver.save(trainer.step, trainer.state.parts())  # as another program might
    trainer.saver.finish()
    line = re.escape("holds numbers that are not finite: blocks.1.attention.qkv.weight")
    with pytest.raises(ValueError, match=line):
        sample_checkpoint(tmp_path / "bad", num=2)
    with pytest.raises(ValueError, match=line):
        evaluate_checkpoint(tmp_path / "bad", num=2)
    with pytest.raises(ValueError, match=line):
        export(tmp_path / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"points": 3_000_000_000},
            "32 samples of shape (3000000000, 3), 32 at a time, need more than 5760 GB",
        ),
        ({"num": 10**12}, "1000000000000 samples of shape (64, 3)"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num": 0}, "num must be at least 1, got 0"),
        ({"guidance": math.nan}, "guidance must be a finite number, between -1000 and 1000, got nan"),
        ({"top_k": 0}, "top_k must lie between 1 and num_experts = 8, got 0"),
        ({"seed": -1}, "seed must"),
    ],
)
def test_requests_that_make_no_sense(run: Path, tmp_path: Path, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        sample_checkpoint(run, out=tmp_path / "out", **{"num": 32, **options})
    assert not (tmp_path / "out").exists()


def test_a_batch_larger_than_what_is_asked_for_is_as_large_as_that(run: Path, tmp_path: Path) -> None:
    assert sample_checkpoint(run, num=2, batch_size=10**12, out=tmp_path / "out")


def test_guidance_that_leads_nowhere_is_said(run: Path, tmp_path: Path) -> None:
    """Weights that are numbers can still lead to samples that are none."""
    restored = restore(run)
    with torch.no_grad():
        for parameter in restored.model.parameters():
            parameter.fill_(1e30)
    with pytest.raises(ValueError, match="no longer finite"):
        draw_from(restored, restored.model.conditioning.read(torch.zeros(1, dtype=torch.long)))


def test_check_number() -> None:
    for good in (0, 1, 0.5):
        check_number("x", good, 0, 1)
    for bad in (-1, 1.1):
        with pytest.raises(ValueError, match="x must be between 0 and 1, got"):
            check_number("x", bad, 0, 1)
    for bad in (math.nan, math.inf, True, "1", None):
        with pytest.raises(ValueError, match="x must be a finite number, between 0 and 1, got"):
            check_number("x", bad, 0, 1)
    with pytest.raises(ValueError, match=r"x must be a whole number, at least 1, got 1\.0"):
        check_number("x", 1.0, 1, whole=True)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, [1, -3], [1.0, "1", True, None, [1]]),
        (float, [1, 1.5], ["1", False, None]),
        (bool, [True], [1, "true", None]),
        (str, ["a"], [1, None, True]),
        (int | None, [None, 2], ["a", 2.5]),
        (Sequence[int], [[1, 2], (1,), []], [1, ["a"], "12", None]),
        (float | Sequence[float], [1, [1.5]], ["a", ["a"]]),
        (tuple[float, float], [[1, 2]], [[1], [1, 2, 3]]),
        (dict[str, Any], [{}], [1, []]),
        (float | torch.Tensor, [1.0], ["a", None]),
        (Any, [1, None, "a", []], []),
        (Path, ["a"], []),
    ],
)
def test_fits(kind: Any, good: list[Any], bad: list[Any]) -> None:
    assert all(fits(value, kind) for value in good)
    assert not any(fits(value, kind) for value in bad)
    assert in_words(kind)


def test_a_part_checks_what_comes_later() -> None:
    part = Part.of("router", TokenChoice, {"num_experts": 4})
    assert isinstance(part, partial)
    assert part(hidden_size=8, top_k=2).top_k == 2
    with pytest.raises(ValueError, match="router must be given top_k"):
        part(hidden_size=8)
    with pytest.raises(ValueError, match="router does not take topk"):
        part(hidden_size=8, top_k=2, topk=3)


def test_options_that_are_handed_on_are_known() -> None:
    check_options("sinkhorn", Sinkhorn, {"balance": 0.1, "temperature": 1, "z_loss": 0})
    with pytest.raises(ValueError, match="sinkhorn does not take balence"):
        check_options("sinkhorn", Sinkhorn, {"balence": 0.1})


def test_errors_inside_are_left_as_they_are() -> None:
    def broken(x: int) -> None:
        raise TypeError("of another kind")

    with pytest.raises(TypeError, match="of another kind"):
        call("broken", broken, x=1)


def test_dit3d_is_what_was_published(tmp_path: Path) -> None:
    """The experiment makes the model that conversion makes of the published weights; and it trains."""
    config = composed("train", ["experiment=dit3d"])
    made = Architecture(
        family="DiT-3D", depth=12, hidden_size=384, num_heads=6, num_classes=1, patch=4, in_channels=3,
        out_channels=3, size=32, moe_layers=(), num_experts=0, expert_width=0, shared_width=0, dense_width=1536,
        qk_norm=False, fused=False,
    ).config(top_k=1, time_scale=1.0)  # fmt: skip
    for name in ("hidden_size", "depth", "num_heads", "dense_ratio", "dense_activation", "qk_norm"):
        assert config["model"][name] == made["model"][name], name
    for name in ("_target_", "patch", "resolution"):
        assert config["modality"]["tokens"][name] == made["tokens"][name]
    assert config["modality"]["tokens"]["extent"] is None
    assert config["router"]["num_experts"] == 0


def test_dit3d_trains(tmp_path: Path) -> None:
    tiny = ["trainer.batch_size=2", "trainer.steps=2", "model.depth=2", "trainer.preview_every=0"]
    trainer = start(tmp_path, "pointcloud", "experiment=dit3d", *tiny)
    assert trainer.run()
    assert trainer.model.tokens.extent is None  # type: ignore[union-attr]


def test_what_is_made_later_is_not_made_before() -> None:
    def modality(codec: Callable[..., Any] | None) -> None:
        raise AssertionError

    for early in (torch.nn.Identity(), object()):
        with pytest.raises(
            ValueError, match=r"^codec of Y is made later: its section must say _partial_: true$"
        ):
            check_options("Y", modality, {"codec": early})
    for later in (None, Part.of("X", modality, {}), partial(modality), modality, torch.nn.Identity):
        check_options("Y", modality, {"codec": later})


def test_a_value_that_is_no_number_is_shown_in_part() -> None:
    with pytest.raises(ValueError, match=r"^a must be a whole number, at least 1, got 'A{199}\.\.\.$"):
        check_number("a", "A" * 10**6, 1, whole=True)
