"""Checkpoints: never half-written, never executed, never of another shape."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from ditmoe import build, checkpoint


def test_round_trip(tmp_path: Path) -> None:
    content = {"step": 3, "model": {"w": torch.randn(2, 2)}, "config": {"a": [1, None, "x"]}}
    checkpoint.save(tmp_path / "new" / checkpoint.NAME, content)
    back = checkpoint.load(tmp_path / "new")
    assert back["step"] == 3
    assert back["config"] == content["config"]
    assert torch.equal(back["model"]["w"], content["model"]["w"])


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    file = tmp_path / checkpoint.NAME
    checkpoint.save(file, {"step": 1})

    def write_to_a_full_disk() -> None:
        with checkpoint.replacing(file) as stream:
            stream.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_to_a_full_disk()
    assert checkpoint.load(file)["step"] == 1
    assert os.listdir(tmp_path) == [checkpoint.NAME]


def test_missing_truncated_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"holds no {checkpoint.NAME}"):
        checkpoint.load(tmp_path)
    file = tmp_path / checkpoint.NAME
    checkpoint.save(file, {"model": {"w": torch.randn(100)}})
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load(file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(ValueError, match="lacks the entry format"):
        checkpoint.load(file)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {witness}",)

    file = tmp_path / checkpoint.NAME
    torch.save({"format": checkpoint.FORMAT, "model": Payload()}, file)
    with pytest.raises(ValueError, match="no ditmoe checkpoint"):
        checkpoint.load(file)
    file.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="no ditmoe checkpoint"):
        checkpoint.load(file)
    assert not witness.exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "ditmoe.checkpoint.os.system",
        "ditmoe.build.make",
        "torch.load",
        "torch.optim",
        3,
    ],
)
def test_a_hostile_configuration_is_refused(target: object) -> None:
    config = {"model": {"nested": [{"_target_": target}]}}
    with pytest.raises(ValueError, match="not trusted"):
        build.check_trusted(config, Path("x.pt"))


def test_interpolations_from_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="interpolation"):
        build.check_trusted({"a": "${oc.env:HOME}"}, Path("x.pt"))


def test_the_projects_own_configuration_is_trusted() -> None:
    for target in (
        "ditmoe.model.DiTMoE",
        "diffusers.DDIMScheduler",
        "torch.optim.AdamW",
        "ditmoe.moe.TokenChoice",
    ):
        build.check_trusted({"_target_": target}, Path("x.pt"))


def test_the_first_tensor_that_does_not_fit_is_named() -> None:
    model = torch.nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"weight is \(3, 4\) there, \(3, 2\) here"):
        build.load_weights(model, torch.nn.Linear(4, 3).state_dict(), Path("x.pt"))
    with pytest.raises(ValueError, match=r"bias is missing there"):
        build.load_weights(model, {"weight": torch.zeros(3, 2)}, Path("x.pt"))
