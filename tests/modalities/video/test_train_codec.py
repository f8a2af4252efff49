"""The autoencoder trained alone: stopped anywhere it ends the same, it beats the closed form, and runs use it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ditmoe import checkpoint
from ditmoe.checkpoint import manifest
from ditmoe.config import build
from ditmoe.config.compose import composed
from ditmoe.train import make_trainer
from ditmoe.train_codec import train_codec
from modalities.video import CausalPatches
from modalities.video.codec import training
from modalities.video.codec.causal_patches import read_codec

CODEC = ["modality.codec.channels=6", "modality.codec.width=24"]
WORDS = ["modality=video", "modality.frames=5", "modality.size=[16,16]", "modality.data.workers=0", *CODEC]


LONG = "modality.codec.steps=200"


def modality(*words: str, command: str = "train_codec"):
    config = composed(command, [*WORDS, *(["out=x"] if command != "train" else []), *words])
    return build.make(config["modality"]) if command != "train" else config


def after(steps: int):
    """Says stop after so many steps."""
    asked = iter(range(steps + 1))
    return lambda: next(asked) == steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("codec") / "out"
    assert modality(LONG).train_codec(out)
    return out


def test_it_is_better_than_the_closed_form_and_white(trained: Path, capsys: pytest.CaptureFixture) -> None:
    report = json.loads((trained / training.REPORT).read_text())
    assert report["held out"] == {"clips": 64, "frames": 5, "size": [16, 16]}
    assert report["trained"]["psnr"] > report["closed form"]["psnr"] + 0.2
    assert report["trained"]["ssim"] > report["closed form"]["ssim"]
    codec = CausalPatches(channels=6, width=24, path=str(trained))
    codec.fit(iter(()))  # needs no data
    x = torch.cat(list(modality().fitting_data()))
    with torch.no_grad():
        rows = codec.encode(x).transpose(0, 1).flatten(1)
    assert rows.mean(1).abs().max() < 1e-3
    assert (rows.std(1) - 1).abs().max() < 1e-3
    line = training.summary(report, trained).splitlines()[-1]
    assert line.endswith(f"modality.codec.path={trained} modality.codec.channels=6 modality.codec.width=24")


def test_stopped_anywhere_it_ends_as_if_it_had_not_been(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)  # as if each step took long
    short, whole, parts = "modality.codec.steps=16", tmp_path / "whole", tmp_path / "parts"
    assert modality(short).train_codec(whole)
    for stop in (0, 5, 0, 4):
        assert not modality(short).train_codec(parts, stopped=after(stop))
        with pytest.raises(ValueError, match=r"is not finished: run the same train_codec again"):
            read_codec(parts, {})
        assert len(list((parts / "checkpoints").iterdir())) == 1
    assert "going on from step 5" in capsys.readouterr().out
    assert modality(short).train_codec(parts)
    one, other = (read_codec(folder, {}) for folder in (whole, parts))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert (whole / training.REPORT).read_text() == (parts / training.REPORT).read_text()
    capsys.readouterr()
    assert modality(short).train_codec(parts)
    assert "is trained; another out= starts anew" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["before the first checkpoint", "before the last one"])
def test_a_write_that_fails_leaves_a_folder_in_which_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    save = checkpoint.save

    def failing(out: Path, step: int, parts: dict) -> Path:
        if parts["finished"] or "first" in place:
            (out / checkpoint.FOLDER).mkdir(exist_ok=True)
            raise OSError(5, "Input/output error")
        return save(out, step, parts)

    short = "modality.codec.steps=2"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", failing)
        with pytest.raises(OSError, match="Input/output error"):
            modality(short).train_codec(tmp_path)
    assert modality(short).train_codec(tmp_path)
    assert read_codec(tmp_path, {})


LIES: dict[str, dict] = {
    "no options": {"options": None},
    "options in a list": {"options": [1]},
    "no setting": {"setting": "x"},
    "a word for finished": {"finished": "no"},
    "a list for the closed form": {"closed form": [1]},
    "a word in the closed form": {"closed form": {"psnr": "x"}},
    "a step behind the last": {"step": 999},
    "no state of the optimizer": {"optimizer": {}},
    "a word for a tensor": {"fitted_state": {"mean": "x"}},
    "a flag for the optimizer": {"optimizer": {"param_groups": [{"capturable": True, "lr": 1e300}]}},
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("begun") / "out"
    assert not modality("modality.codec.steps=3").train_codec(out, stopped=after(1))
    return out


@pytest.mark.parametrize("lie", LIES)
def test_a_stranger_s_folder_is_refused_in_one_line_or_believed_in_its_tensors_alone(
    lie: str, begun: Path, tmp_path: Path
) -> None:
    shutil.copytree(begun, out := tmp_path / "out")
    (folder,) = (out / checkpoint.FOLDER).iterdir()
    content = json.loads((folder / manifest.NAME).read_text())
    content.pop("digest")
    if "step" in LIES[lie]:
        content |= LIES[lie]
        folder = folder.rename(folder.with_name("step-0000999"))
    content["parts"] |= LIES[lie]
    (folder / manifest.NAME).write_bytes(manifest.sealed(content))
    if {"optimizer", "fitted_state"} & set(LIES[lie]):
        assert modality("modality.codec.steps=3").train_codec(out)
        assert all(value.isfinite().all() for value in read_codec(out, {}).values())
        return
    with pytest.raises(ValueError, match=r"^[^\n]* is no state of train_codec[^\n]*$"):
        modality("modality.codec.steps=3").train_codec(out)


def test_tensors_that_are_not_the_codec_s_are_refused_in_one_line(begun: Path, tmp_path: Path) -> None:
    for number, (part, change) in enumerate((
        ("optimizer", lambda tensors: tensors | {"state/0/exp_avg": torch.zeros(3)}),
        ("optimizer", lambda tensors: tensors | {"state/99/exp_avg": torch.zeros(3)}),
        ("optimizer", lambda tensors: {}),
        ("fitted_state", lambda tensors: tensors | {"mean": torch.zeros(2**10)}),
        ("fitted_state", lambda tensors: {"mean/x": torch.zeros(1)}),
    )):  # fmt: skip
        shutil.copytree(begun, out := tmp_path / str(number))
        (folder,) = (out / checkpoint.FOLDER).iterdir()
        file = folder / f"{part}.safetensors"
        save_file(change(load_file(file)), file)
        content = json.loads((folder / manifest.NAME).read_text())
        content.pop("digest")
        content["files"][file.name] = {"bytes": file.stat().st_size, "sha256": checkpoint.digest(file)}
        (folder / manifest.NAME).write_bytes(manifest.sealed(content))
        with pytest.raises(ValueError, match=r"^[^\n]* does not fit the model: [^\n]*$"):
            modality("modality.codec.steps=3").train_codec(out)


def test_another_training_is_refused_in_one_line(trained: Path, tmp_path: Path) -> None:
    for word, name in {"modality.codec.steps=61": "steps", "modality.frames=9": "frames",
                       "modality.codec.width=16": "width"}.items():  # fmt: skip
        words = [LONG, word]
        with pytest.raises(ValueError, match=rf"holds an autoencoder with {name} \d+, got \d+: give this"):
            modality(*words).train_codec(trained)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out must be new or a folder of train_codec, but .* holds file"):
        modality().train_codec(tmp_path)
    with pytest.raises(
        ValueError, match=r"trains modality.codec=causal_patches, without a modality.codec.path"
    ):
        modality(f"modality.codec.path={trained}").train_codec(tmp_path / "x")


@pytest.mark.parametrize("other", ["image", "pointcloud"])
def test_it_is_for_modalities_that_train_one(other: str, tmp_path: Path) -> None:
    config = composed("train_codec", [f"modality={other}", f"out={tmp_path}"])
    with pytest.raises(ValueError, match=f"modalities that train an autoencoder: {other} does not"):
        train_codec(config)


def test_a_run_uses_it_and_needs_it_no_more(trained: Path, tmp_path: Path) -> None:
    words = [f"modality.codec.path={trained}", "model=debug", "trainer.steps=1", "trainer.batch_size=2"]
    config = modality(*words, command="train")
    run = make_trainer(config, build.make_modality(config), tmp_path / "run")
    run.run()
    data_facts = checkpoint.load(tmp_path / "run")["facts"]
    assert all(
        torch.equal(data_facts["codec"][name], value) for name, value in read_codec(trained, {}).items()
    )
    config["modality"]["codec"]["path"] = "gone"
    again = build.make_modality(config, data_facts)
    assert torch.equal(again.batch(2, 0, 0)[0], run.modality.batch(2, 0, 0)[0])
    config["modality"]["codec"]["channels"] = 7
    lines = {
        str(trained): "codec.channels must be that of .*, 6, got 7",
        "gone": "a folder that train_codec wrote",
    }
    for path, line in lines.items():
        config["modality"]["codec"]["path"] = path
        with pytest.raises(ValueError, match=line):
            build.make_modality(config).data_facts()


def test_options_that_a_stranger_wrote_are_quoted_in_brief(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "codec")
    file = checkpoint.find(folder).path / manifest.NAME
    content = json.loads(file.read_text())
    content.pop("digest")
    content["parts"]["options"]["width"] = "\x1b[2J" + "A" * 100_000
    file.write_bytes(manifest.sealed(content))
    with pytest.raises(ValueError, match=r"^codec.width must be that of [^\x1b]{,300}, got 8$"):
        read_codec(folder, {"width": 8})


def test_a_tensor_of_a_type_that_is_not_read_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"^codec/step-2: fitted_state/mean is of type C64, which is not supported$"
    ):
        checkpoint.in_memory("C64", "codec/step-2: fitted_state/mean")


def test_quality_of_what_is_met_exactly_is_the_bound() -> None:
    codec = CausalPatches((4, 4, 4), 2, width=4, steps=0)
    codec.fit([torch.full((4, 3, 5, 8, 8), -1.0)])
    black = np.zeros((2, 5, 8, 8, 3), np.uint8)
    assert training.quality(codec, black) == {"psnr": 100.0}  # and too small for SSIM
