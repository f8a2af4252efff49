"""Training: resuming is exact, stopping is clean, and every option in configs/ trains and samples."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from ditmoe import checkpoint
from ditmoe.config import build, cli
from ditmoe.config.compose import composed
from ditmoe.config.restore import restore
from ditmoe.inference import draw_from
from ditmoe.pretrained.start import start_from
from ditmoe.train import make_trainer
from ditmoe.training.resume import resume
from ditmoe.training.schedule import Schedule

DEFAULT = "flow_matching"
TINY = [
    "model=debug",
    "modality.num_points=64",
    "modality.tokens.resolution=8",
    "trainer.batch_size=2",
    "trainer.warmup=2",
    "trainer.preview_every=0",
    "trainer.log_every=1",
    "sampling.steps=2",
]


def config(*overrides: str) -> dict:
    return composed("train", [*TINY, *overrides])


def trainer(folder: Path, *overrides: str):
    settings = config(*overrides)
    return make_trainer(settings, build.make_modality(settings), folder), settings


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole, _ = trainer(tmp_path / "whole", "trainer.steps=6", "trainer.accumulate=2")
    whole.run()

    first, settings = trainer(tmp_path / "parts", "trainer.steps=6", "trainer.accumulate=2")
    train_step = first._train_step

    def interrupted() -> dict:
        if first.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step()

    first._train_step = interrupted
    assert not first.run()
    assert first.step == 2  # the step at hand had passes to go

    second, _ = trainer(tmp_path / "parts", "trainer.steps=6", "trainer.accumulate=2")
    resume(second, settings)
    assert second.step == 2
    assert second.run()

    a, b = checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "parts")
    assert a["step"] == 6
    for part in ("model", "ema", "optimizer", "step", "facts"):
        assert same(a[part], b[part]), part
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    first, _ = trainer(tmp_path, "trainer.steps=1")
    first.run()
    other, settings = trainer(tmp_path, "trainer.steps=1", "router.num_experts=4")
    with pytest.raises(ValueError, match="another router"):
        resume(other, settings)
    longer, settings = trainer(tmp_path, "trainer.steps=2")
    resume(longer, settings)
    assert longer.step == 1


def test_the_loss_falls_and_the_log_tells_it(tmp_path: Path) -> None:
    options = ["process.prediction=velocity", "optimizer.lr=3e-3", "trainer.batch_size=8"]
    run, _ = trainer(tmp_path, "trainer.steps=80", *options)
    run.run()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records]
    assert sum(losses[-20:]) < 0.95 * sum(losses[:20])
    shares = [v for k, v in records[-1].items() if k.startswith("load/layer00/")]
    assert sum(shares) == pytest.approx(1)
    assert records[-1]["balance"] >= 0.95
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("router", ["token_choice", "race", "relu", "timestep", "dense"])
def test_a_routers_losses_are_added_once_per_layer_and_returned(tmp_path: Path, router: str) -> None:
    run, _ = trainer(tmp_path, "trainer.steps=1", f"router={router}", "trainer.precision=fp32")
    said, routings = run.losses(run.batches(0))
    objective, losses = said.total, said.parts
    assert len(routings) == (0 if router == "dense" else 2)
    assert run.losses(run.batches(0))[0].total == objective  # the batch is a function of its index
    assert run.losses(run.batches(1))[0].total != objective
    expected = losses.pop("loss")
    aux = losses.pop("aux", None)
    for name, value in losses.items():
        own = [routing.losses[name] for routing in routings]
        assert value == torch.stack([loss.value for loss in own]).mean()
        expected = expected + sum(loss.coefficient * loss.value for loss in own)
    if router == "race":  # drafts predict nothing at birth but for their own layer: their error comes on top
        assert all(routing.aux_prediction.shape == (2, 64, 3) for routing in routings)
        assert torch.allclose(objective, expected + 2 * 0.01 * aux)
    else:
        assert aux is None
        assert torch.allclose(objective, expected)


def test_a_model_may_start_from_another_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wide = ["model.dense_ratio=2.0", "model.dense_activation=swiglu"]
    dense, _ = trainer(tmp_path / "dense", "trainer.steps=2", "router=dense", *wide)
    dense.run()
    same = ["router.renormalize=true", "upcycle.noise=0"]
    options = ["trainer.steps=1", *same, f"init={tmp_path / 'dense'}", *wide]
    run, settings = trainer(tmp_path / "mixture", *options)
    assert "copied to every expert" in capsys.readouterr().out
    x, t, y = torch.randn(2, 64, 3), torch.tensor([100.0, 900.0]), torch.tensor([0, 1])
    assert torch.allclose(run.ema.model(x, t, y)[0], dense.ema.model(x, t, y)[0], atol=1e-5)
    with pytest.raises(ValueError, match=r"model.num_heads must be that of .*, got 1"):
        trainer(tmp_path / "mixture", *options, "model.num_heads=1")
    with pytest.raises(ValueError, match=r"model.activation must be that of the dense layers of .* got gelu"):
        start_from(str(tmp_path / "dense"), run.model, settings["model"] | {"activation": "gelu"})


def test_accumulation_takes_new_data_for_every_part(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path, "trainer.steps=1", "trainer.accumulate=3")
    seen = []
    losses = run.losses
    run.losses = lambda batch: (seen.append(batch.index), losses(batch))[1]
    run._train_step()
    run.step = 1
    run._train_step()
    assert seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_learning_rate(decay: str) -> None:
    schedule = Schedule(steps=100, warmup=10, decay=decay)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == 1
    assert rates[-1] == (1 if decay == "constant" else pytest.approx(0, abs=0.02))


def options(group: str) -> list[str]:
    files = (cli.config_folder() / group).glob("*.yaml")
    # Those only choose among the others.
    return sorted(f.stem for f in files if not f.stem.startswith(("for_", "_")))


EACH_WAY = {"token_choice", "race", "timestep", "dense"}
"""Routers that every process trains: of tokens alone, with a prediction of its own, by time, and none."""


@pytest.mark.parametrize(
    ("router", "process"),
    [
        (router, process)
        for router in options("router")
        for process in options("process")
        if process == DEFAULT or router in EACH_WAY
    ],
)
def test_every_router_and_process_trains_and_samples(tmp_path: Path, router: str, process: str) -> None:
    scheduler = {"flow_matching": "flow_euler", "ddpm": "ddim"}[process]
    run, _ = trainer(
        tmp_path, f"router={router}", f"process={process}", f"scheduler={scheduler}", "trainer.steps=2"
    )
    run.run()
    restored = restore(tmp_path)
    samples = draw_from(restored, restored.model.conditioning.ask(3, restored.modality.classes), batch_size=2)
    assert samples.data.shape == (3, 64, 3)
    again = draw_from(restored, restored.model.conditioning.ask(3, restored.modality.classes), batch_size=3)
    assert abs(samples.data - again.data).max() < 1e-4 * abs(samples.data).max()


@pytest.mark.parametrize("preset", options("model"))
def test_every_preset_builds_on_the_meta_device(preset: str) -> None:
    settings = config(f"model={preset}")
    with torch.device("meta"):
        data_facts = {"classes": ["a"], "mean": [0.0] * 3, "scale": 1.0}
        model = build.make_model(settings, build.make_modality(settings, data_facts))
    assert sum(p.numel() for p in model.parameters()) > 0


def test_another_number_of_experts_may_be_active_when_sampling(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path, "trainer.steps=2")
    run.run()
    assert restore(tmp_path, top_k=1).model.blocks[0].feed_forward.router.top_k == 1
    with pytest.raises(ValueError, match="num_experts = 8, got 9"):
        restore(tmp_path, top_k=9)
    relu, _ = trainer(tmp_path / "relu", "trainer.steps=1", "router=relu")
    relu.run()
    with pytest.raises(ValueError, match="does not use it in sampling"):
        restore(tmp_path / "relu", top_k=1)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.steps=0", "trainer.steps must be at least 1"),
        ("trainer.decay=exponential", "exponential"),
        ("trainer.precision=fp8", "fp8"),
        ("trainer.ema_decay=1.0", "ema_decay"),
        ("trainer.condition_dropout=2.0", "condition_dropout"),
        ("router.top_k=9", "num_experts = 8, got 9"),
        ("model.num_heads=5", "48 and 5"),
        ("modality.tokens.patch=3", "8 and 3"),
        ("modality.num_points=0", "num_points"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, override)
