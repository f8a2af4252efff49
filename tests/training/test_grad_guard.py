"""Numbers that are not finite never reach the weights, spikes are cut, and what was skipped is told with its batch."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ditmoe import checkpoint
from ditmoe.checkpoint.places import listed
from ditmoe.training import Batch, Guard
from ditmoe.training.grad_guard import MOMENTUM, WARMUP
from ditmoe.training.options import Clipping
from ditmoe.training.resume import resume
from tests.training.test_trainer import same, trainer


def guard(**options: object) -> Guard:
    return Guard(Clipping(**{"clip": 1e9, "patience": 3, **options}), torch.device("cpu"))


def clipped(guard: Guard, size: float) -> tuple[float, bool]:
    """The norm that is left of a gradient of this norm, and whether it counts."""
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    parameter.grad = torch.full((4,), size / 2, dtype=torch.float64)
    _, good = guard.clip_gradients([parameter], torch.tensor(0.0))
    return float(parameter.grad.norm()), bool(good)


def test_clipping_is_torchs() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(5, 3), torch.randn(7)]
    for largest in (0.5, 100.0):
        ours, theirs = ([nn.Parameter(torch.zeros_like(g)) for g in gradients] for _ in range(2))
        for a, b, g in zip(ours, theirs, gradients, strict=True):
            a.grad, b.grad = g.clone(), g.clone()
        norm, good = guard(clip=largest).clip_gradients(ours, torch.tensor(1.0))
        assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs, largest))
        assert good
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_zclip_is_the_papers() -> None:
    """Against a loop over plain numbers."""
    torch.manual_seed(1)
    norms = (1 + 0.1 * torch.randn(100)).abs().tolist()
    norms[40], norms[41], norms[70] = 9.0, 3.0, 1e30
    ours = guard(zclip=2.5)
    mean = variance = 0.0
    for step, norm in enumerate(norms):
        expected = norm
        if step == WARMUP:
            mean = sum(norms[:WARMUP]) / WARMUP
            variance = sum((n - mean) ** 2 for n in norms[:WARMUP]) / WARMUP
        if step >= WARMUP:
            z = (norm - mean) / math.sqrt(variance)
            if z > 2.5:
                expected = mean + 2.5**2 / z * math.sqrt(variance)
            mean = MOMENTUM * mean + (1 - MOMENTUM) * expected
            variance = MOMENTUM * variance + (1 - MOMENTUM) * (expected - mean) ** 2
        left, good = clipped(ours, norm)
        assert good
        assert left == pytest.approx(expected, rel=1e-5), step
    assert ours.numbers["spikes"] >= 3


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("fused", [True, False])
def test_a_number_that_is_not_finite_moves_nothing(wrong: float, fused: bool) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1, fused=fused)
    ours = guard(zclip=2.5)

    def step(value: float) -> None:
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        module.weight.grad[0, 0] = value
        norm, good = ours.clip_gradients(module.parameters(), torch.tensor(1.0))
        ours.note(0, good, torch.tensor(1.0), norm)
        ours.step(optimizer, good)

    step(1.0)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = json.dumps(optimizer.state_dict(), default=lambda t: t.tolist())
    numbers = {k: v.clone() for k, v in ours.numbers.items()}
    step(wrong)
    assert same(before, dict(module.state_dict()))
    assert state == json.dumps(optimizer.state_dict(), default=lambda t: t.tolist())
    assert same(numbers, ours.numbers)
    step(1.0)
    assert not torch.equal(before["weight"], module.weight)
    assert [entry["loss"] for entry in ours.settle()] == ["1"]
    assert (ours.skipped, ours.streak) == (1, 0)


def poison(run: object, steps: set[int]) -> None:
    """Let some steps' gradients overflow."""
    losses = run.losses

    def poisoned(batch: Batch):
        found, routings = losses(batch)
        total = found.total * math.inf if batch.index in steps else found.total
        return replace(found, total=total), routings

    run.losses = poisoned


@pytest.mark.parametrize("router", ["loss_free", "batch_pool", "relu"])
def test_a_skipped_step_is_as_if_its_batch_had_said_nothing(tmp_path: Path, router: str, capfd) -> None:
    run, _ = trainer(tmp_path, "trainer.steps=6", f"router={router}", "trainer.log_every=2")
    poison(run, {2, 3})
    seen = []
    add = run.meter.add
    run.meter.add = lambda numbers: (
        seen.append({k: v.clone() for k, v in run.model.state_dict().items()}),
        add(numbers),
    )
    assert run.run()
    assert same(seen[1], seen[3])
    assert not same(seen[3], seen[4])
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["skipped"] for record in records] == [0, 2, 2]
    assert records[1]["loss"] is None
    assert math.isfinite(records[2]["loss"])
    first, second = records[1]["skipped_batches"]
    assert (first["step"], first["seed"], first["batches"], first["gradient_norm"]) == (2, 0, [2], "nan")
    shapes = run.modality.data.split("train")
    batch = run.modality.batch(2, 0, 3)[1].tolist()
    labels = {shape.name: shape.label for shape in shapes}
    assert [labels[name] for name in second["samples"]] == batch
    told = capfd.readouterr()
    assert "step 2 skipped: loss" in told.err
    assert "skipped 2" in told.out


def test_so_many_in_a_row_end_the_run_and_it_can_go_on(tmp_path: Path) -> None:
    options = ("trainer.steps=9", "trainer.patience=3", "trainer.log_every=100")
    run, settings = trainer(tmp_path, *options)
    poison(run, {1, 3, 4, 5})
    with pytest.raises(ValueError, match=r"3 steps in a row .* the state of step 6 is saved"):
        run.run()
    assert checkpoint.find(tmp_path).plain["step"] == 6
    again, _ = trainer(tmp_path, *options)
    resume(again, settings)
    assert (again.guard.skipped, again.guard.streak) == (4, 0)
    assert again.run()


@pytest.mark.parametrize("background", ["true", "false"])
def test_weights_that_are_no_numbers_take_no_good_checkpoints_place(tmp_path: Path, background: str) -> None:
    """A finite loss may make them so, by the optimiser's moments; no later step says what they were."""
    options = ("trainer.steps=6", "trainer.save_every=1", "trainer.keep_last=1")
    run, settings = trainer(tmp_path, *options, f"trainer.background_save={background}")
    step = run._train_step

    def blown() -> object:
        if run.step == 3:
            for state in run.optimizer.state.values():
                state["exp_avg"].fill_(3e38)
        return step()

    run._train_step = blown
    with pytest.raises(
        ValueError, match=r"^step 4 is not saved, since model/\S+ holds [^\n]* step 3 is safe"
    ):
        run.run()
    assert [step for step, _ in listed(tmp_path)] == [3]
    again, _ = trainer(tmp_path, *options)
    resume(again, settings)
    assert again.run()


def test_a_state_of_other_shapes_is_refused() -> None:
    made = guard()
    state = made.state()
    state["numbers"] = state["numbers"] | {"mean": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"guard/numbers/mean must be one number, got the shape \(1,\)"):
        made.load_state(state)


def test_guards_and_averages_go_on_exactly(tmp_path: Path) -> None:
    options = ("trainer.steps=40", "trainer.zclip=0.5", "trainer.log_every=20", "trainer.patience=4")
    for name, stops in (("whole", []), ("parts", [7, 29, 33])):
        for _ in range(1 + len(stops)):
            run, settings = trainer(tmp_path / name, *options)
            poison(run, {4, 30, 31, 32})
            if checkpoint.exists(run.folder):
                resume(run, settings)
            step = run._train_step

            def stopping(run=run, step=step, stops=stops):
                run.stop.requested = run.step + 1 in stops
                return step()

            run._train_step = stopping
            run.run()
    a, b = (checkpoint.load(tmp_path / name) for name in ("whole", "parts"))
    assert a["guard"]["numbers"]["spikes"] > 0
    for part in ("model", "ema", "optimizer", "guard", "step"):
        assert same(a[part], b[part]), part
    curves = [
        [
            {k: v for k, v in json.loads(line).items() if k != "samples_per_second"}
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 2


@pytest.mark.parametrize("option", ["clip=0", "zclip=-1", "patience=0"])
def test_options_that_mean_nothing(tmp_path: Path, option: str) -> None:
    with pytest.raises(ValueError, match=f"trainer.{option.split('=')[0]} must be above 0"):
        trainer(tmp_path, f"trainer.{option}")
