"""Pipelines of diffusers: the same samples as the command, what diffusers users expect, and folders of strangers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import ditmoe
from ditmoe.export import export
from ditmoe.pipeline import Pipeline
from ditmoe.sample import sample_checkpoint
from tests.test_convert import converted, state_of
from tests.test_image_adapter import autoencoder, trained
from tests.test_trainer import trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    trained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pipes") / "digits"
    export(run, out)
    return out


def opened(folder: Path, **options) -> Pipeline:
    pipe = ditmoe.Pipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_images_are_those_of_the_command_bit_for_bit(run: Path, exported: Path, tmp_path: Path) -> None:
    file = sample_checkpoint(run, num=5, seed=3, batch_size=2, out=tmp_path / "s.npz")[1]
    found = opened(exported)(num_samples=5, seed=3, batch_size=2, output_type="np")
    assert np.array_equal(np.load(file)["arr_0"], found.samples)
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    moved = shutil.copytree(exported, tmp_path / "moved")
    assert np.array_equal(
        opened(moved)(num_samples=5, seed=3, batch_size=2, output_type="np").samples, found.samples
    )


def test_clouds_are_those_of_the_command_bit_for_bit(tmp_path: Path) -> None:
    trainer(tmp_path / "run", "trainer.steps=2")[0].run()
    export(tmp_path / "run", tmp_path / "pipe")
    file = sample_checkpoint(tmp_path / "run", num=3, label="chair", out=tmp_path / "s.npz")[1]
    found = opened(tmp_path / "pipe")(label="chair", num_samples=3)
    assert np.array_equal(np.load(file)["points"], found.samples)


def test_what_it_gives(exported: Path) -> None:
    pipe = opened(exported)
    pictures = pipe(label=["3", 7, "none"]).samples
    assert [picture.size for picture in pictures] == [(24, 16)] * 3
    assert pipe(label=["3", 7, "none"]).labels.tolist() == [3, 7, 10]
    assert pipe(output_type="latent", num_inference_steps=1).samples.shape == (1, 3, 4, 6)
    assert pipe(output_type="pt", num_inference_steps=1).samples.dtype == torch.uint8
    samples, labels = pipe(num_samples=2, return_dict=False, num_inference_steps=1)
    assert (len(samples), labels.tolist()) == (2, [0, 1])

    def drawn(seed: int) -> np.ndarray:
        return pipe(num_samples=2, generator=torch.Generator().manual_seed(seed), output_type="np").samples

    assert np.array_equal(drawn(1), drawn(1))
    assert not np.array_equal(drawn(1), drawn(2))
    each = [torch.Generator().manual_seed(i) for i in range(3)]
    again = [torch.Generator().manual_seed(i) for i in range(3)]
    whole = pipe(label="1", num_samples=3, generator=each, output_type="latent").samples
    parts = pipe(label="1", num_samples=3, generator=again, batch_size=1, output_type="latent").samples
    assert torch.allclose(whole, parts, atol=1e-4)


def test_what_diffusers_does_with_pipelines_works(exported: Path, tmp_path: Path) -> None:
    pipe = opened(exported)
    before = pipe(num_samples=2, output_type="np").samples
    pipe.save_pretrained(tmp_path / "again", max_shard_size="100KB")
    assert len(list((tmp_path / "again/transformer").glob("*.safetensors"))) > 1
    assert np.array_equal(opened(tmp_path / "again")(num_samples=2, output_type="np").samples, before)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert not np.array_equal(pipe(num_samples=2, output_type="np").samples, before)
    half = opened(exported, torch_dtype=torch.bfloat16)
    assert half.transformer.dtype == torch.bfloat16
    near = half(num_samples=2, output_type="np").samples.astype(float)
    assert np.abs(near - before).mean() < 12
    assert opened(exported).to(torch.float64)(num_samples=1, num_inference_steps=1).samples
    assert "vae" not in {name for name, part in pipe.components.items() if part is not None}


def test_an_autoencoder_travels_in_the_folder(tmp_path: Path) -> None:
    autoencoder("sd").save_pretrained(tmp_path / "vae")
    words = ["codec@modality.codec=autoencoder", f"modality.codec.path={tmp_path / 'vae'}"]
    trained(tmp_path / "run", *words)
    expected = np.load(sample_checkpoint(tmp_path / "run", num=2, out=tmp_path / "s.npz")[1])["arr_0"]
    export(tmp_path / "run", tmp_path / "pipe")
    shutil.rmtree(tmp_path / "vae")
    assert np.array_equal(opened(tmp_path / "pipe")(num_samples=2, output_type="np").samples, expected)


@pytest.mark.parametrize("time", ["scaled", "unscaled"])
def test_converted_models_become_pipelines(golden: Callable, tmp_path: Path, time: str) -> None:
    converted(state_of(golden("dit_moe_tiny.npz")), tmp_path, time=time)
    export(tmp_path / "out", tmp_path / "latents")
    pipe = opened(tmp_path / "latents")
    latents = pipe(label=1, num_samples=2, num_inference_steps=3).samples
    size = golden("dit_moe_tiny.npz")["x"].shape[1:]
    assert latents.shape == (2, *size)
    assert type(pipe.process).__name__ == {"scaled": "DDPM", "unscaled": "FlowMatching"}[time]
    autoencoder("sd").save_pretrained(tmp_path / "vae")
    export(tmp_path / "out", tmp_path / "pictures", autoencoder=str(tmp_path / "vae"))
    shutil.rmtree(tmp_path / "vae")
    picture = opened(tmp_path / "pictures")(label=1, num_inference_steps=3).samples[0]
    assert picture.size == (2 * size[2], 2 * size[1])
    autoencoder("sd3").save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="must have the 4 latent channels of the model, got 16"):
        export(tmp_path / "out", tmp_path / "wrong", autoencoder=str(tmp_path / "vae"))
    assert not list(tmp_path.glob(".wrong*"))


def tampered(exported: Path, tmp_path: Path, file: str, change: Callable[[dict], None]) -> Path:
    folder = shutil.copytree(exported, tmp_path / "tampered")
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model_index.json", lambda c: c.update(transformer=["os", "system"])),
        ("model_index.json", lambda c: c.update(vae=["ditmoe.pipeline", "Transformer"])),
        ("model_index.json", lambda c: c.update(scheduler=["diffusers", "UNet2DModel"])),
        ("model_index.json", lambda c: c.update(more=["subprocess", "Popen"])),
        ("model_index.json", lambda c: c.update(scheduler=["ditmoe.scheduler", "../../x"])),
        ("transformer/config.json", lambda c: c["config"]["router"].update(_target_="os.system")),
        (
            "transformer/config.json",
            lambda c: c["config"]["modality"]["data"].update(_target_="builtins.eval"),
        ),
        ("memory/config.json", lambda c: c["config"]["process"].update(_target_="subprocess.Popen")),
    ],
)
def test_folders_of_strangers_execute_nothing(
    exported: Path, tmp_path: Path, file: str, change: Callable
) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*trusted, refused[^\n]*$"):
        opened(tampered(exported, tmp_path, file, change))


def test_wrong_words_are_one_line(run: Path, exported: Path, tmp_path: Path) -> None:
    pipe = opened(exported)
    for words, line in (
        ({"label": "chair"}, "label 'chair' is not a class of this model"),
        ({"num_samples": 0}, "num must be at least 1, got 0"),
        ({"output_type": "jpg"}, "output_type must be one of pil, np, pt, latent, got 'jpg'"),
        ({"num_inference_steps": 0}, "num_inference_steps and batch_size must be at least 1, got 0 and 32"),
    ):
        with pytest.raises(ValueError, match=line):
            pipe(**words)
    with pytest.raises(FileNotFoundError, match=r"holds no model_index.json"):
        Pipeline.from_pretrained(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="out must be new, or a folder that export wrote"):
        export(run, tmp_path / "full")
    with pytest.raises(ValueError, match="a run has its own"):
        export(run, tmp_path / "new", autoencoder="x")
    export(run, exported)  # one that export wrote is replaced
