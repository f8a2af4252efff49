"""Fewer steps: what a student takes from its teacher, and that it is drawn with as it was learnt."""

import json
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ditmoe import checkpoint
from ditmoe.checkpoint import manifest
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.config.restore import restore
from ditmoe.diffusion import torch_generator
from ditmoe.distill import OWN, distill, student
from ditmoe.export import export
from ditmoe.inference import draw_from
from ditmoe.pipelines import Pipeline
from ditmoe.pretrained.start import inherited
from ditmoe.pretrained.teacher import pinned
from ditmoe.train import make_trainer
from ditmoe.training import Trainer
from ditmoe.training.resume import resume
from tests.audit import resealed
from tests.checkpoint.dropping import drop_what_is_found
from tests.many import together
from tests.training.test_time_per import KINDS, configured
from tests.training.test_trainer import same

MOST = 8


def teacher(folder: Path, kind: str = "pointcloud", *more: str) -> Path:
    settings = configured(kind, "trainer.steps=1", *more)
    run = make_trainer(settings, build.make_modality(settings), folder)
    with torch.no_grad():
        for value in run.model.parameters():  # one that predicts something
            value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    run.run()
    return folder


def learner(run: Path, out: Path, *words: str) -> tuple[Trainer, dict]:
    told = [f"checkpoint={run}", f"out={out}", f"flow_map={MOST}", "trainer.steps=3", *words]
    told = composed("distill", [*told, "trainer.precision=fp32"])
    earlier = checkpoint.find(out).part("config")["distillation"] if checkpoint.exists(out) else None
    found = pinned(checkpoint.find(run, parts=("ema", "facts")), earlier)
    config = student(told, found)
    modality = build.make_modality(config, found.part("facts"))
    return make_trainer(config, modality, out, found), config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def few(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("few")
    assert learner(run, out)[0].run()
    return out


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_student_begins_as_its_teacher_and_draws_in_few_steps(kind: str, tmp_path: Path) -> None:
    """To the bit, whatever it is told of its steps; with parts given where the modality gives some."""
    given = [] if kind == "occupied" else ["given=0.5"]
    first, _ = learner(teacher(tmp_path / "t", kind, *given), tmp_path / "few")
    own, other = first.ema.model, first.teaching.teacher
    batch = first.batches(0)
    told, x_t, target = first.teaching(batch, own, lambda m, *a: first._predict(batch.layout, m, *a))
    sizes = () if batch.layout is None else (batch.layout,)
    x = told.shaped(x_t)
    assert told.asked.step["span"].shape == told.t.shape
    assert torch.equal(own(x, told.t, told.asked, *sizes)[0], other(x, told.t, batch.asked, *sizes)[0])
    assert target.shape == x_t.shape
    if batch.known is not None:
        assert not told.asked.step["span"][batch.known].any()
        assert torch.equal(told.t[batch.known], batch.t[batch.known])
    assert first.run()
    restored = restore(tmp_path / "few")
    asked = restored.model.conditioning.ask(2, restored.modality.classes)
    assert draw_from(restored, asked, steps=1, guidance=3).data.shape[0] == 2


def test_what_is_learnt_at_length_zero_is_the_teachers_guided_velocity(run: Path, tmp_path: Path) -> None:
    first, _ = learner(run, tmp_path, "distillation.share=0")
    batch = first.batches(0)
    told, x_t, target = first.teaching(batch, first.ema.model, lambda m, *a: first._predict(None, m, *a))
    weight = told.asked.step["guidance"].view(-1, 1, 1)
    assert weight.min() >= 1
    assert weight.max() <= 4
    asks, nothing = (first.teaching.teacher(x_t, told.t, a)[0] for a in (batch.asked, batch.asked.nothing))
    assert torch.allclose(target, nothing + weight * (asks - nothing), atol=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(run: Path, tmp_path: Path, few: Path) -> None:
    first, config = learner(run, tmp_path)
    first.options = replace(first.options, steps=1)
    first.run()
    second, config = learner(run, tmp_path)
    resume(second, config)
    assert second.step == 1
    assert second.run()
    a, b = checkpoint.load(few), checkpoint.load(tmp_path)
    for part in ("model", "ema", "optimizer"):
        assert same(a[part], b[part]), part
    assert not same(a["model"], checkpoint.load(run)["ema"])
    other, config = learner(run, tmp_path, "distillation.share=0.5")
    with pytest.raises(ValueError, match="another distillation"):
        resume(other, config)


def learnt(run: Path, out: Path) -> None:
    learner(run, out)[0].run()


def test_two_processes_learn_what_one_does(run: Path, tmp_path: Path, few: Path) -> None:
    together(learnt, 2, run, tmp_path)
    one, two = (
        [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
        for out in (few, tmp_path)
    )
    assert len(two) == 3
    assert two == pytest.approx(one, abs=1e-5)


def test_a_teacher_that_went_on_teaches_what_it_was(tmp_path: Path) -> None:
    run, out = teacher(tmp_path / "t"), tmp_path / "few"
    learner(run, out, "trainer.steps=1")[0].run()
    settings = configured("pointcloud", "trainer.steps=2")
    longer = make_trainer(settings, build.make_modality(settings), run)
    resume(longer, settings)
    longer.run()
    _, config = learner(run, out)
    assert config["distillation"]["step"] == 1
    checkpoint.keep(run, last=1)
    with pytest.raises(ValueError, match="must still hold step 1"):
        learner(run, out)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps": 3}, "steps must be one of 1, 2, 4, 8 for this model, got 3"),
        ({"steps": 50}, "steps must be one of 1, 2, 4, 8"),
        ({"guidance": 7}, "guidance must lie between 1 and 4, for which this model was distilled, got 7"),
        ({"interval": [0, 500]}, "interval must be"),
        ({"negative": True}, "negative must be left out"),
        ({"scheduler": "flow_heun"}, "scheduler must be flow_map.* got FlowMatchHeun"),
        ({"scheduler": "ddim"}, "cannot follow process flow_matching"),
    ],
)
def test_what_it_was_not_made_for_is_one_line(few: Path, options: dict, line: str) -> None:
    restored = restore(few)
    asked = restored.model.conditioning.ask(2, restored.modality.classes)
    if name := options.get("scheduler"):
        options = {"scheduler": composed("train", [f"scheduler={name}"])["scheduler"]}
    if options.get("negative"):
        options = {"negative": asked}
    with pytest.raises(ValueError, match=rf"^[^\n]*{line}[^\n]*$"):
        draw_from(restored, asked, **options)


def test_what_cannot_be_learnt_from_is_one_line(run: Path, few: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was itself distilled"):
        learner(few, tmp_path)
    with pytest.raises(ValueError, match="nothing to learn"):
        learner(run, tmp_path, "flow_map=null", "guidance=null")
    with pytest.raises(ValueError, match="power of two between 1 and 512, got 6"):
        learner(run, tmp_path, "flow_map=6")
    with pytest.raises(ValueError, match="steps must be one of 1, 2, 4, 8"):
        learner(run, tmp_path, "steps=16")
    ddpm = teacher(tmp_path / "ddpm", "pointcloud", "process=ddpm", "scheduler=ddim")
    with pytest.raises(ValueError, match="flow_map must be null for process DDPM"):
        learner(ddpm, tmp_path / "out")


@pytest.mark.parametrize(
    ("section", "value", "line"),
    [
        ("model", [[]], "must have options in its section model, got list"),
        ("optimizer", 1e30, "must have options in its section optimizer, got float"),
        ("optimizer.lr", None, "optimizer.lr of .* must be a finite number"),
        ("model.hidden_size", "nan", "hidden_size must be a whole number"),
        ("modality.evaluation.cache", "mine", "wants to open modality.evaluation.cache = 'mine'"),
    ],
)
def test_an_edited_teacher_is_one_line(
    section: str, value: object, line: str, run: Path, tmp_path: Path
) -> None:
    content = json.loads((next((run / "checkpoints").iterdir()) / manifest.NAME).read_text())["parts"][
        "config"
    ]
    *outer, last = section.split(".")
    reduce(lambda tree, name: tree[name], outer, content)[last] = value
    resealed(run, tmp_path / "run", content)
    words = composed(
        "distill", [f"checkpoint={tmp_path / 'run'}", f"out={tmp_path / 'out'}", "trainer.steps=1"]
    )
    with pytest.raises(ValueError, match=rf"^[^\n]*{line}[^\n]*$"):
        distill(words)
    assert not (tmp_path / "out").exists()


def test_a_step_that_its_teacher_drops_meanwhile_is_read_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = checkpoint.load(run)
    for step in (1, 2):
        checkpoint.save(tmp_path / "run", step, parts | {"step": step})
    steps = drop_what_is_found(monkeypatch)
    words = [f"checkpoint={tmp_path / 'run'}", f"out={tmp_path / 'out'}", "trainer.steps=1"]
    distill(composed("distill", [*words, "finish.num=0", "finish.evaluate=false"]))
    assert steps == [2, 1]
    assert checkpoint.exists(tmp_path / "out")


def test_guidance_alone_is_drawn_with_any_scheduler_in_one_pass(run: Path, tmp_path: Path) -> None:
    first, config = learner(run, tmp_path, "flow_map=null")
    assert config["sampling"]["steps"] == 50
    first.run()
    restored, rows = restore(tmp_path), []
    restored.model.register_forward_pre_hook(lambda m, a: rows.append(len(a[0])))
    asked = restored.model.conditioning.ask(2, restored.modality.classes)
    draw_from(restored, asked, steps=2, guidance=3)
    assert rows == [2, 2]


def test_a_pipeline_draws_what_the_command_draws(few: Path, tmp_path: Path) -> None:
    export(few, tmp_path / "pipe")
    pipe = Pipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(num_samples=3, num_inference_steps=2, guidance_scale=2.0, seed=1).samples
    restored = restore(few)
    asked = restored.model.conditioning.ask(3, restored.modality.classes, torch_generator("labels", 1))
    own = draw_from(restored, asked, steps=2, guidance=2, seed=1).data
    assert abs(drawn - own).max() < 1e-5  # images are the same bit for bit; sums over experts may round
    with pytest.raises(ValueError, match="guidance must lie between"):
        pipe(num_samples=1, guidance_scale=9.0)
    with pytest.raises(ValueError, match="timesteps and sigmas must be left out"):
        pipe(num_samples=1, num_inference_steps=2, sigmas=[1.0, 0.3])


def test_a_callback_sets_the_guidance_inside_too(few: Path, tmp_path: Path) -> None:
    export(few, tmp_path / "pipe")
    pipe, told = Pipeline.from_pretrained(tmp_path / "pipe"), []
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.register_forward_pre_hook(lambda m, a: told.append(a[2].step["guidance"].item()))

    def later(pipe: Pipeline, step: int, time: Tensor, values: dict) -> None:
        assert not pipe.do_classifier_free_guidance  # no second pass
        pipe._guidance_scale = 1.0

    pipe(num_samples=1, num_inference_steps=2, guidance_scale=3.0, callback_on_step_end=later)
    assert told == [3, 1]


def test_what_lora_learnt_is_taught(run: Path, tmp_path: Path) -> None:
    words = [f"init={run}", "lora.rank=2", "trainer.steps=1"]
    settings = configured("pointcloud", *words, "trainer.warmup=0", "optimizer.lr=0.01")
    make_trainer(settings, build.make_modality(settings), tmp_path / "lora").run()
    first, _ = learner(tmp_path / "lora", tmp_path / "few")
    merged = restore(tmp_path / "lora").model.state_dict()
    assert same(first.teaching.teacher.state_dict(), merged)
    assert not same(merged, restore(run).model.state_dict())
    assert first.state.carried["command"][0] == "distill"


def test_what_stays_of_a_distillation_is_said() -> None:
    few = {"guidance": [1, 4], "flow_map": 8}
    assert inherited({}, few) == inherited(few, few) == []
    assert "guidance 1 to 4: some" in inherited(few, {})[0]
    assert "for few steps" in inherited(few, {"guidance": [1, 4]})[0]
    assert inherited({"rope": False}, {}) == []
    assert "model.rope=true: with false" in inherited({"rope": True}, {"rope": False})[0]


@pytest.mark.parametrize("earlier", [5, "x", [1], {"step": "a"}, {"step": -1}, {"step": None}])
def test_a_run_that_does_not_say_of_which_step_it_learns_is_one_line(earlier: object) -> None:
    newest = checkpoint.Checkpoint(Path("run"), {"step": 1}, {})
    with pytest.raises(ValueError, match=r"^the run in out= must state the step of its teacher, got [^\n]*$"):
        pinned(newest, earlier)


def test_a_teacher_starts_no_processes_and_fills_no_disk(run: Path, tmp_path: Path) -> None:
    """Its configuration may be a stranger's: how to compute is for the person to say."""
    content = json.loads((next((run / "checkpoints").iterdir()) / manifest.NAME).read_text())["parts"][
        "config"
    ]
    content["trainer"] |= {
        "compile": True,
        "compile_mode": "max-autotune",
        "workers": 256,
        "batch_size": 3,
        "save_every": 1,
        "keep_last": 10**6,
        "keep_every": 1,
    }
    resealed(run, tmp_path / "run", content)
    found = checkpoint.find(tmp_path / "run", parts=("ema", "facts"))
    for words, told in (
        ([], OWN),
        (["trainer.workers=2", "trainer.compile=true"], OWN | {"workers": 2, "compile": True}),
    ):
        composed_words = composed(
            "distill", [f"checkpoint={tmp_path / 'run'}", f"out={tmp_path / 'out'}", *words]
        )
        trainer = student(composed_words, found)["trainer"]
        assert {name: trainer[name] for name in OWN} == told
        assert trainer["batch_size"] == 3


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", "A" * 900),
        ("accumulate", [1]),
        ("accumulate", True),
        ("batch_size", 0),
        ("batch_size", None),
    ],
)
def test_what_a_card_multiplies_are_numbers(option: str, value: object, run: Path, tmp_path: Path) -> None:
    content = json.loads((next((run / "checkpoints").iterdir()) / manifest.NAME).read_text())["parts"][
        "config"
    ]
    content["trainer"][option] = value
    resealed(run, tmp_path / "run", content)
    with pytest.raises(ValueError, match=rf"^trainer.{option} of [^\n]* must be a?[^\n]*got [^\n]*$"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
