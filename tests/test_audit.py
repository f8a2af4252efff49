"""Strangers' checkpoints and folders, by every command: no process, no socket, no file touched outside the output."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ditmoe
from ditmoe import checkpoint
from ditmoe.checkpoint import manifest
from ditmoe.config.compose import composed
from ditmoe.config.restore import restore
from ditmoe.export import export
from ditmoe.inference import sample_checkpoint
from ditmoe.mesh import mesh
from ditmoe.pretrained import weights
from ditmoe.train import finish
from ditmoe.training import Recorder
from ditmoe.training.resume import resume
from ditmoe.view import view
from tests.audit import (
    CLASSES,
    GADGETS,
    PLACES,
    SECTIONS,
    commands,
    planted,
    resealed,
    tried,
    untouched,
    watched,
)
from tests.modalities.image.test_adapter import trained as trained_image
from tests.training.test_trainer import trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    trainer(place / "cloud", "trainer.steps=1")[0].run()
    trained_image(place / "image")
    export(place / "image", place / "pipe")
    return {name: place / name for name in ("cloud", "image", "pipe")}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with something to lose beside the output."""
    (tmp_path / "home" / "victim").mkdir(parents=True)
    for name in ("diary.txt", ".diary.npz.1.tmp"):
        (tmp_path / "home" / "victim" / name).write_text("dear diary")
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "home")])
    (tmp_path / "home" / "planted.py").write_text("open('PWNED', 'w')")
    return tmp_path / "home"


@pytest.mark.parametrize("section", SECTIONS)
def test_gadgets_in_a_configuration(runs: dict[str, Path], home: Path, tmp_path: Path, section: str) -> None:
    config = checkpoint.find(runs["cloud"]).part("config")
    made_of = section not in ("trainer", "optimizer", "mesh", "finish")
    for number, gadget in enumerate(GADGETS if made_of else GADGETS[:1]):
        ways = list(planted(config, section, gadget))
        for spoilt in ways if number == 0 and made_of else [ways[number % len(ways)]]:
            run = resealed(runs["cloud"], tmp_path / "run", spoilt)
            for command in commands(run, tmp_path / "out")[: 3 if number < 2 else 1]:
                tried(command, tmp_path, home)


@pytest.mark.parametrize("kind", ["cloud", "image"])
def test_paths_counts_and_names_in_a_checkpoint(
    runs: dict[str, Path], home: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    for dotted, value in PLACES:
        config = checkpoint.find(runs[kind]).part("config")
        section: Any = config
        *outer, last = dotted.split(".")
        for key in outer:
            section = section[key]
        section[last] = value
        for command in commands(resealed(runs[kind], tmp_path / "run", config), tmp_path / "out"):
            tried(command, tmp_path, home)
    for classes in CLASSES:
        run = resealed(runs[kind], tmp_path / "run", data_facts={"classes": classes})
        for command in commands(run, tmp_path / "out"):
            tried(command, tmp_path, home)
    printed = "".join(capsys.readouterr())
    assert "\x1b[2J" not in printed
    assert "\nerror: forged" not in printed


def test_files_that_are_no_checkpoint_are_never_unpickled(home: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, ("touch PWNED",)

    (tmp_path / "run").mkdir()
    torch.save({"format": "ditmoe-1", "model": Payload()}, tmp_path / "run" / "checkpoint.pt")
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoint.pt"):
        for command in commands(path, tmp_path / "out"):
            tried(command, tmp_path, home)


def test_a_converted_folder(home: Path, tmp_path: Path) -> None:
    config = {
        "model": {"_target_": "ditmoe.model.DiTMoE", "hidden_size": 16, "depth": 1, "num_heads": 2},
        "tokens": {"_target_": "modalities.image.LatentTokens", "channels": 4, "patch": 2},
        "conditioning": {"_target_": "ditmoe.conditioning.ClassLabel", "_partial_": True},
        "num_classes": 3,
        "router": None,
        "size": 8,
    }
    state = weights.make(config).state_dict()
    weights.write(tmp_path / "converted", config, state.items())
    written = json.loads((tmp_path / "converted" / weights.CONFIG).read_text())
    assert ditmoe.load(tmp_path / "converted", "cpu")
    for number, gadget in enumerate([*GADGETS, 2**30, [1], None]):
        for section in (
            "model",
            "tokens",
            "router",
            "conditioning",
            "num_classes",
            "shards",
            "size",
            "found",
        ):
            options = written.get(section) if isinstance(written.get(section), dict) else {}
            ways = list(planted({**written, section: options}, section, gadget))
            (tmp_path / "converted" / weights.CONFIG).write_text(json.dumps(ways[number % len(ways)]))
            tried(lambda: ditmoe.load(tmp_path / "converted", "cpu"), tmp_path, home)


def test_an_exported_folder(runs: dict[str, Path], home: Path, tmp_path: Path) -> None:
    def spoil(file: str, change: Callable[[dict], Any]) -> Path:
        shutil.rmtree(tmp_path / "pipe", ignore_errors=True)
        shutil.copytree(runs["pipe"], tmp_path / "pipe")
        content = json.loads((tmp_path / "pipe" / file).read_text())
        change(content)
        (tmp_path / "pipe" / file).write_text(json.dumps(content))
        return tmp_path / "pipe"

    def drawn() -> None:
        pipe = ditmoe.Pipeline.from_pretrained(tmp_path / "pipe")
        pipe(num_samples=1, num_inference_steps=1)

    for gadget in GADGETS[::2]:
        for file, section in (
            ("transformer/config.json", "model"), ("transformer/config.json", "modality"),
            ("memory/config.json", "process"), ("memory/config.json", "modality"), ("memory/config.json", "sampling"),
        ):  # fmt: skip
            spoil(file, lambda c, s=section, g=gadget: c["config"][s].update(x=g))
            tried(drawn, tmp_path, home)
    for name in ("scheduler", "vae", "transformer", "memory", "more", "_class_name"):
        for value in (["os", "system"], ["diffusers", "AutoencoderRAE"], ["diffusers", "ModularPipeline"],
                      ["diffusers", "DiffusionPipeline"], ["planted", "x"], {"a": "b"}):  # fmt: skip
            spoil("model_index.json", lambda c, n=name, v=value: c.update({n: v}))
            tried(drawn, tmp_path, home)
    for file in ("transformer/config.json", "scheduler/scheduler_config.json", "memory/config.json"):
        for key, value in (
            ("quantization_config", {"quant_method": "torchao"}), ("auto_map", {"AutoModel": "planted.X"}),
            ("_class_name", "planted.X"), ("_name_or_path", "someone/model"), ("num_train_timesteps", 2**40),
        ):  # fmt: skip
            spoil(file, lambda c, k=key, v=value: c.update({k: v}))
            tried(drawn, tmp_path, home)
    spoil("memory/config.json", lambda c: c.update(classes=["../victim/x", "\x1b[2J"] * 20))
    tried(drawn, tmp_path, home)


@pytest.mark.parametrize("place", ["manifest.json", "ema.safetensors"])
def test_special_files_in_a_checkpoint_hold_nobody_up(
    runs: dict[str, Path], home: Path, tmp_path: Path, place: str
) -> None:
    run = resealed(runs["cloud"], tmp_path / "run")
    file = checkpoint.find(run).path / place
    file.unlink()
    os.mkfifo(file)
    for command in commands(run, tmp_path / "out"):
        tried(command, tmp_path, home)
    pipe = shutil.copytree(runs["pipe"], tmp_path / "pipe")
    os.mkfifo(pipe / "vae")
    tried(lambda: ditmoe.Pipeline.from_pretrained(pipe), tmp_path, home)


def test_weights_that_are_larger_than_the_files(runs: dict[str, Path], home: Path, tmp_path: Path) -> None:
    """Sizes come from the tensors that are there; an absurd one is refused before memory is taken."""
    for change in ({"model": {"hidden_size": 2**20}}, {"model": {"depth": 4000}}, {"router": {"num_experts": 60_000}},
                   {"modality": {"num_points": 2**24}}):  # fmt: skip
        config = checkpoint.find(runs["cloud"]).part("config")
        for name, options in change.items():
            config[name] = config[name] | options
        run = resealed(runs["cloud"], tmp_path / "run", config)
        with pytest.raises(ValueError, match=r"^[^\n]*$"):
            sample_checkpoint(run, num=1, steps=1, out=tmp_path / "out")
    pipe = shutil.copytree(runs["pipe"], tmp_path / "pipe")
    content = json.loads((pipe / "transformer/config.json").read_text())
    content["config"]["model"]["hidden_size"] = 2**20
    (pipe / "transformer/config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not fit the model"):
        ditmoe.Pipeline.from_pretrained(pipe)
    file = pipe / "memory/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    assert tensors
    with suppress(OSError):
        save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="does not fit the model"):
        ditmoe.Pipeline.from_pretrained(pipe)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("transformer", {"tensors": {"x": [[2**30], "float32"]}}),
        ("transformer", {"tensors": {"x": [["a"], "float32"]}}),
        ("transformer", {"data_facts": [1]}),
        ("memory", {"classes": 5}),
        ("memory", {"classes": [1, None]}),
        ("memory", {"classes": ["\x1b[31mred", "\n"]}),
    ],
)
def test_what_a_pipeline_tells_of_its_facts_is_looked_at(
    part: str, change: dict[str, Any], runs: dict[str, Path], tmp_path: Path
) -> None:
    """Four gigabytes of zeros in thirty bytes; names that are none."""
    pipe = shutil.copytree(runs["pipe"], tmp_path / "pipe")
    file = pipe / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=r"^[^\n]* (must|holds) [^\n]*$"):
        ditmoe.Pipeline.from_pretrained(pipe)


def test_viewing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "a\x1b[2J.npy").write_bytes(
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    )
    os.mkfifo(folder / "b.npy")
    (folder / "c.npy").symlink_to("/dev/zero")
    tried(lambda: view([str(folder), "--out", str(tmp_path / "out")]), tmp_path, home)


@pytest.mark.parametrize("change", ["shape", "missing", "nan"])
def test_a_codec_that_decodes_nothing_is_told_before_the_work(
    change: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(runs["image"], tmp_path / "image")
    place = next((run / checkpoint.FOLDER).iterdir())
    state = load_file(place / "facts.safetensors")
    name = next(name for name in state if name.startswith("codec/"))
    value = state.pop(name)
    if change != "missing":
        state[name] = torch.zeros(7) if change == "shape" else torch.full_like(value, torch.nan)
    save_file(state, place / "facts.safetensors")
    content = json.loads((place / manifest.NAME).read_text())
    content.pop("digest")
    about = {"bytes": (place / "facts.safetensors").stat().st_size}
    content["files"]["facts.safetensors"] = about | {"sha256": checkpoint.digest(place / "facts.safetensors")}
    (place / manifest.NAME).write_bytes(manifest.sealed(content))
    with pytest.raises(ValueError, match=r"^[^\n]*the codec must [^\n]*$"):
        restore(run)


def test_a_pipeline_tells_of_such_a_codec_when_it_is_opened(runs: dict[str, Path], tmp_path: Path) -> None:
    pipe = shutil.copytree(runs["pipe"], tmp_path / "pipe")
    (file,) = (pipe / "memory").glob("*.safetensors")
    state = load_file(file)
    save_file({k: torch.full_like(v, torch.nan) for k, v in state.items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"^[^\n]*the codec must hold finite numbers[^\n]*$"):
        ditmoe.Pipeline.from_pretrained(pipe)


@pytest.mark.parametrize("last", ["exp_avg_sq", "step"])
def test_moments_that_no_optimiser_has_are_refused(last: str, runs: dict[str, Path], tmp_path: Path) -> None:
    """Their roots would be NaN, and so would all weights, and the checkpoints that follow."""
    run = shutil.copytree(runs["cloud"], tmp_path / "cloud")
    file = run / checkpoint.FOLDER / "step-0000001" / "optimizer.safetensors"
    state = load_file(file)
    save_file({k: -torch.ones_like(v) if k.endswith(f"/{last}") else v for k, v in state.items()}, file)
    content = json.loads((file.parent / manifest.NAME).read_text())
    content.pop("digest")
    content["files"][file.name] = {"bytes": file.stat().st_size, "sha256": checkpoint.digest(file)}
    (file.parent / manifest.NAME).write_bytes(manifest.sealed(content))
    before = file.read_bytes()
    again, settings = trainer(run, "trainer.steps=2")
    with pytest.raises(
        ValueError,
        match=rf"^[^\n]*no negative second moments or step counts, got some: optimizer/[^\n]*{last}$",
    ):
        resume(again, settings)
    assert file.read_bytes() == before


def test_a_run_that_goes_on_takes_its_own_checkpoint_alone(
    runs: dict[str, Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's paths are trusted, and so nobody else's configuration may be taken for the command's."""
    settings = checkpoint.find(runs["cloud"]).part("config")
    run = tmp_path / "run" / "run"
    shutil.copytree(runs["cloud"], run)
    whole = run / checkpoint.FOLDER / "step-0000001"
    content = json.loads((whole / manifest.NAME).read_text())
    content.pop("digest")
    content["parts"]["config"]["process"] = {"_target_": "subprocess.Popen", "args": ["touch", "PWNED"]}
    for name, step in (("step-0000009", 9), ("step-00000001", 1), ("step-0000002", 1), ("step-0000003", 3)):
        shutil.copytree(whole, run / checkpoint.FOLDER / name)
        sealed = manifest.sealed(content | {"step": step})
        (run / checkpoint.FOLDER / name / manifest.NAME).write_bytes(sealed)
        (run / checkpoint.FOLDER / name / "optimizer.safetensors").unlink()
    found = trainer(run, "trainer.steps=1")[0]
    with watched(tmp_path) as seen:
        with found.exclusive_lock():
            resume(found, settings)
            found.run()
        finish({"num": 1, "evaluate": False}, run, "train", found.step)
    assert [event for event in seen if "gethostname" not in event] == []  # TensorBoard's files are named so
    untouched(home)
    assert checkpoint.place(run, 1).is_dir()


@pytest.mark.parametrize(
    "name", ["checkpoints/step-0000002", "checkpoints", "log.jsonl", "progress", "samples"]
)
def test_links_in_a_run_lead_its_training_nowhere(
    runs: dict[str, Path], home: Path, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["cloud"], run)
    if (run / name).is_dir():
        shutil.rmtree(run / name)
    (run / name).unlink(missing_ok=True)
    target = home / "victim" / ("diary.txt" if name.endswith("jsonl") else "")
    (run / name).symlink_to(target)
    with watched(run) as seen, pytest.raises(ValueError, match=r"^[^\n]* is a link[^\n]*$"):
        trainer(run, "trainer.steps=2")[0].run()
    assert seen == []
    untouched(home)


def test_links_where_samples_or_a_checkpoint_would_be(
    runs: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["cloud"], run)
    for name in ("samples-seed0", "checkpoints/step-0000002"):
        (run / name).symlink_to(home / "victim")
    for command in (
        lambda: sample_checkpoint(run, num=1, steps=1),
        lambda: checkpoint.save(run, 2, {"a": {}}),
    ):
        with watched(run) as seen, pytest.raises(ValueError, match=r"^[^\n]* is a link[^\n]*$"):
            command()
        assert seen == []
        untouched(home)


@pytest.mark.parametrize("inner", ["", "mine-0000.npy", "view.png", "more"])
def test_links_for_samples_are_neither_viewed_nor_meshed(
    inner: str, runs: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    """The command names the run; what its maker linked to is elsewhere."""
    run = tmp_path / "run"
    shutil.copytree(runs["cloud"], run, ignore=shutil.ignore_patterns("samples"))
    np.save(home / "victim" / "mine-0000.npy", np.random.default_rng(0).normal(size=(256, 3)))
    if inner:
        shutil.copytree(home / "victim", run / "samples")
        (run / "samples" / inner).unlink(missing_ok=True)
    target = home / "victim" / inner if inner.endswith(".npy") else home / "victim"
    (run / "samples" / inner).symlink_to(target)
    for command in (
        lambda: view([str(run)]),
        lambda: mesh(composed("mesh", ["modality=pointcloud", f"source={run}", f"out={tmp_path / 'out'}"])),
    ):
        with watched(tmp_path / "out") as seen, pytest.raises(ValueError, match=r"^[^\n]* is a link[^\n]*$"):
            command()
        assert seen == []
    assert not (home / "victim" / "view.png").exists()
    assert not (tmp_path / "out").exists()


def test_a_log_that_is_a_pipe_holds_no_training_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match="must be a plain file"):
        Recorder(tmp_path, 0)


def test_what_an_exported_folder_builds_is_bounded_before_it_is_built(
    runs: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    pipe = shutil.copytree(runs["pipe"], tmp_path / "pipe")
    file = pipe / "scheduler" / "scheduler_config.json"
    content = json.loads(file.read_text())
    for name in ("num_train_timesteps", "solver_order"):
        file.write_text(json.dumps({**content, name: 2 * 10**8}))
        with pytest.raises(ValueError, match="must lie between"):
            ditmoe.Pipeline.from_pretrained(pipe)


def test_a_link_beside_a_checkpoint_is_not_exported(
    runs: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(runs["cloud"], tmp_path / "run")
    (tmp_path / "secret.json").write_text('{"sesame": 1.5}')
    (run / "metrics.json").symlink_to(tmp_path / "secret.json")
    export(run, tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert "sesame" not in (tmp_path / "out" / "README.md").read_text()


def test_facts_that_are_no_sizes(runs: dict[str, Path], home: Path, tmp_path: Path) -> None:
    for facts in (
        {"stride": ["x" * 1000] * 2},
        {"stride": [[0] * 9] * 2},
        {"shape": [0, -1, 2]},
        {"stride": None},
    ):
        run = resealed(runs["image"], tmp_path / "run", data_facts=facts)
        with pytest.raises(ValueError, match=r"^[^\n]*$"):
            sample_checkpoint(run, num=1, steps=1, out=tmp_path / "out")
