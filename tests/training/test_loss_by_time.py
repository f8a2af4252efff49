"""Where the loss sits, and what a mask leaves of a batch: on one process and on two."""

import json
from pathlib import Path

import pytest
import torch

from ditmoe import checkpoint
from ditmoe.diffusion import Losses
from ditmoe.training.batch import Batch
from ditmoe.training.loss_by_time import BINS, means_by_time, sums_by_time
from ditmoe.training.resume import resume
from tests.many import together
from tests.training.test_trainer import trainer

RUN = ["trainer.steps=4", "trainer.batch_size=4", "trainer.precision=fp32", "trainer.log_every=2"]


def names(record: dict) -> dict:
    return {name: value for name, value in record.items() if name.startswith("loss_by_time/")}


def test_bins_hold_the_mean_of_their_times() -> None:
    t = torch.tensor([0.0, 99.9, 100.0, 999.0, 1000.0])[:, None]
    each, counted = torch.tensor([1.0, 4.0, 5.0, 6.0, 8.0])[:, None], torch.tensor([2.0, 1, 1, 3, 1])[:, None]
    sums = sums_by_time(Losses(torch.zeros(()), {}, t, each, counted))
    assert sums.shape == (2, BINS)
    means = means_by_time(sums)
    assert list(means)[:2] == ["loss_by_time/000-100", "loss_by_time/100-200"]
    assert [v for v in means.values() if v is not None] == pytest.approx([2.0, 5.0, 6.5])
    assert means["loss_by_time/900-1000"] == pytest.approx(6.5)


def test_the_bins_make_up_the_loss_in_the_log_also_when_a_run_goes_on(tmp_path: Path) -> None:
    whole, _ = trainer(tmp_path / "whole", *RUN, "trainer.save_every=1", "trainer.keep_last=9")
    seen = []
    inner = whole.losses
    whole.losses = lambda batch: (seen.append(batch.t), inner(batch))[1]
    whole.run()
    records = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    for record, times in zip(records, (torch.cat(seen[:2]), torch.cat(seen[2:])), strict=True):
        share = torch.histc(times, BINS, 0, 1000) / len(times)
        values = list(names(record).values())
        assert [v is None for v in values] == (share == 0).tolist()
        assert sum(
            s * v for s, v in zip(share.tolist(), values, strict=True) if v is not None
        ) == pytest.approx(record["loss"], rel=1e-5)
    assert "loss_by_time" not in whole.meter.line(records[-1])
    (tmp_path / "parts" / "checkpoints").mkdir(parents=True)
    kept = checkpoint.place(tmp_path / "whole", 1)  # between two lines of the log
    kept.rename(checkpoint.place(tmp_path / "parts", 1))
    second, settings = trainer(tmp_path / "parts", *RUN)
    resume(second, settings)
    second.run()
    again = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [names(record) for record in again] == [names(record) for record in records]


def masked(folder: Path) -> tuple[list[torch.Tensor], dict]:
    """Gradients of a step of two passes on batches of which each sample counts in part, and what the log says."""
    run, _ = trainer(folder, *RUN, "trainer.accumulate=2", "router=dense", "trainer.clip=1e9")
    make, rank = run.batches, run.mesh.rank

    def drawn(index: int) -> Batch:
        batch = make(index)
        first = rank * len(batch.x0)
        keep = (
            torch.arange(batch.x0.shape[1])[None, :, None] % (torch.arange(4)[:, None, None] + 2 + index) == 0
        )
        return batch.only(keep[first : first + len(batch.x0)].float(), run.ranks)

    run.batches = drawn
    numbers = run._train_step()
    moments = [state["exp_avg"] for state in run.optimizer.state.values()]
    whole = [m.full_tensor() if hasattr(m, "full_tensor") else m for m in moments]
    return whole, {"loss": float(numbers["losses"]["loss"]), "by_time": numbers["by_time"].tolist()}


def test_a_masked_batch_is_one_batch_on_any_number_of_processes(tmp_path: Path) -> None:
    one, said = masked(tmp_path / "one")
    two, same = together(masked, 2, tmp_path / "two")
    assert same["loss"] == pytest.approx(said["loss"], rel=1e-5)
    assert torch.allclose(torch.tensor(same["by_time"]), torch.tensor(said["by_time"]), rtol=1e-5)
    for a, b in zip(one, two, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_mask_is_counted_over_the_batch(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path, *RUN)
    batch = run.batches(0)
    plain, _ = run.losses(batch)
    everything, _ = run.losses(batch.only(torch.ones(4, 1, 1), run.ranks))
    assert torch.allclose(everything.total, plain.total)
    half = batch.only((torch.arange(64) < 32).float()[None, :, None].expand(4, -1, 1), run.ranks)
    assert half.share == 4 * 32 * 3
    assert half.to(torch.device("cpu")).mask is not None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("by_time", torch.zeros(2, BINS + 1), r"by_time must have the shape \(2, 10\), got \(2, 11\)"),
        ("tally", torch.zeros(1), r"tally must have the shape \(\d+, \d+\), got \(1,\)"),
        ("loss", torch.zeros(3), r"loss must have the shape \(\), got \(3,\)"),
        ("other", torch.zeros(3), r"other must have the shape \(\), got \(3,\)"),
        ("loss", 5, "loss must be a tensor"),
    ],
)
def test_sums_of_other_shapes_are_one_line(tmp_path: Path, name: str, value: object, words: str) -> None:
    run, _ = trainer(tmp_path, *RUN, "trainer.log_every=9")
    run.run()
    state = run.meter.state()

    def resumed() -> None:
        run.meter.load_state(state | {"sums": {**state["sums"], name: value}})
        run.meter.add(run.meter.latest)

    with pytest.raises(ValueError, match=rf"^meter/sums/{words}[^\n]*$"):
        resumed()
