"""What users of diffusers do with any pipeline: opening, callbacks, latents, sizes, several samples of each."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ditmoe
from ditmoe.diffusion import draw_noise
from ditmoe.export import export
from ditmoe.inference import sample_checkpoint
from tests.modalities.image.test_adapter import autoencoder, trained
from tests.modalities.video.test_adapter import trained as clips
from tests.pipelines.test_pipeline import bits, latents, opened

LINE = r"^[^\n]*{}[^\n]*$"


@pytest.fixture(scope="module")
def pipe(exported: Path) -> ditmoe.Pipeline:
    return opened(exported)


def test_names_on_the_hub(
    pipe: ditmoe.Pipeline, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SimpleNamespace] = []

    def fetch(name: str, allow_patterns: list[str], **options) -> str:
        asked.append(SimpleNamespace(name=name, patterns=allow_patterns, options=options))
        for file in (place for place in tmp_path.joinpath("there").rglob("*") if place.is_file()):
            inner = file.relative_to(tmp_path / "there")
            if any(inner.match(pattern) for pattern in allow_patterns):
                (tmp_path / "here" / inner.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / "here" / inner)
        return str(tmp_path / "here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    there = shutil.copytree(exported, tmp_path / "there")
    (there / "pipeline.py").write_text("raise SystemExit")
    torch.save({}, there / "transformer/pytorch_model.bin")
    save_file({"x": torch.zeros(1)}, there / "transformer/other.safetensors")
    found = opened("someone/digits", revision="v1", token="t", cache_dir=tmp_path, local_files_only=True)
    assert torch.equal(latents(found), latents(pipe))
    assert {call.name for call in asked} == {"someone/digits"}
    options = {"revision": "v1", "token": "t", "cache_dir": tmp_path, "local_files_only": True}
    assert all(call.options == options for call in asked)
    fetched = {file.name for file in (tmp_path / "here").rglob("*") if file.is_file()}
    assert not fetched & {"pipeline.py", "pytorch_model.bin", "other.safetensors", "README.md"}
    shutil.rmtree(tmp_path / "here")
    index = json.loads((there / "model_index.json").read_text())
    (there / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "UNet2DModel"]}))
    asked.clear()
    with pytest.raises(ValueError, match=LINE.format("refused: unet")):
        opened("someone/digits")
    assert len(asked) == 1  # before any weights

    def offline(*_: object, **__: object) -> str:
        raise OSError("no network\nand many more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        FileNotFoundError,
        match=LINE.format("someone/digits must be a folder here or a repository .*, got no network"),
    ):
        opened("someone/digits")


def test_callbacks_see_each_step_and_may_change_it(pipe: ditmoe.Pipeline) -> None:
    seen: list[tuple] = []

    def watch(own, step, time, inputs):
        assert own is pipe
        seen.append((step, float(time), own.num_timesteps, own.guidance_scale))
        return {"latents": torch.zeros_like(inputs["latents"])} if step == 2 else None

    changed = latents(pipe, num_inference_steps=3, guidance_scale=2.0, callback_on_step_end=watch)
    assert changed.eq(0).all()
    assert [(step, of, guidance) for step, _, of, guidance in seen] == [(i, 3, 2.0) for i in range(3)]
    assert sorted((time for _, time, *_ in seen), reverse=True) == [time for _, time, *_ in seen]
    # Looking on changes nothing.
    assert torch.equal(latents(pipe, callback_on_step_end=lambda *_: None), latents(pipe))

    def cut(own, step, time, inputs):
        own._guidance_scale = 1.0

    sampling = {"num_inference_steps": 3}
    once = latents(pipe, **sampling, guidance_scale=3.0, callback_on_step_end=cut)
    assert not torch.equal(once, latents(pipe, **sampling, guidance_scale=3.0))
    assert not torch.equal(once, latents(pipe, **sampling, guidance_scale=1.0))
    with pytest.raises(
        ValueError, match=LINE.format("tensor_inputs must be among latents, got 'prompt_embeds'")
    ):
        pipe(callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_an_interrupted_drawing_ends_where_it_is(pipe: ditmoe.Pipeline) -> None:
    steps = []

    def stop(own, step, time, inputs):
        steps.append(inputs["latents"])
        own._interrupt = step == 1

    found = latents(pipe, num_samples=3, batch_size=2, num_inference_steps=4, callback_on_step_end=stop)
    assert (len(steps), pipe.interrupt) == (2, True)
    assert torch.equal(found[:2], steps[-1])
    assert torch.equal(found[2:], draw_noise([2], pipe.memory.config.shape, 0))
    latents(pipe)
    assert not pipe.interrupt


def test_latents_are_the_starting_noise(pipe: ditmoe.Pipeline) -> None:
    noise = draw_noise(range(2), pipe.memory.config.shape, 7)
    assert torch.equal(latents(pipe, latents=noise, seed=7), latents(pipe, seed=7))
    own = {"generator": [torch.Generator().manual_seed(i) for i in (1, 2)]}
    assert latents(pipe, latents=noise, **own).shape == noise.shape
    for wrong, line in (
        (noise[:1], r"latents must be a tensor of shape \(2, 3, 4, 6\), got \(1, 3, 4, 6\)"),
        (noise.numpy(), "got ndarray"),
        (noise / 0, "latents must be finite"),
    ):
        with pytest.raises(ValueError, match=LINE.format(line)):
            latents(pipe, latents=wrong)


def test_classes_and_several_of_each(pipe: ditmoe.Pipeline) -> None:
    assert pipe.get_label_ids(["3", "1"]) == [3, 1]
    assert pipe.get_label_ids("2") == [pipe.labels["2"]]
    with pytest.raises(ValueError, match=LINE.format("label 'cat' is not a class of this model")):
        pipe.get_label_ids("cat")
    few = {"num_inference_steps": 1, "output_type": "latent"}
    found = pipe(class_labels=[3, 1], num_images_per_prompt=2, **few)
    assert found.labels.tolist() == [3, 3, 1, 1]
    assert torch.equal(found.samples, pipe(label=[3, 3, 1, 1], **few).samples)
    assert pipe(class_labels=torch.tensor([4]), num_videos_per_prompt=2, **few).labels.tolist() == [4, 4]
    with pytest.raises(ValueError, match=LINE.format("only one of label and class_labels")):
        pipe(label=1, class_labels=1)
    with pytest.raises(
        ValueError, match=LINE.format("num_images_per_prompt must be a whole number from 1, got 0")
    ):
        pipe(num_images_per_prompt=0)


def test_sizes_by_both_names(pipe: ditmoe.Pipeline) -> None:
    few = {"num_inference_steps": 1, "output_type": "np"}
    both = [pipe(**words, **few).frames for words in ({"height": 32, "width": 16}, {"size": [32, 16]})]
    assert both[0].shape == (1, 32, 16, 3)
    assert np.array_equal(*both)
    assert pipe(height=32, **few).images.shape == (1, 32, 24, 3)  # the other side is that of training
    for words, line in (
        (
            {"num_frames": 5},
            "num_frames must be left out: the options for the shape of image samples are size",
        ),
        ({"height": 32, "size": [32, 16]}, "size must be given once"),
        ({"height": 0}, "height must"),
    ):
        with pytest.raises(ValueError, match=LINE.format(line)):
            pipe(**words)


def test_times_and_eta(pipe: ditmoe.Pipeline) -> None:
    few = {"num_inference_steps": 4, "seed": 1}
    assert torch.equal(latents(pipe, **few, eta=1.0), latents(pipe, **few))  # what flow_ancestral has
    plain = latents(pipe, **few, eta=0.0)
    assert not torch.equal(plain, latents(pipe, **few))
    latents(pipe, **few, eta=0.0)
    sigmas = pipe.scheduler.sigmas[:-1].tolist()
    assert torch.allclose(latents(pipe, sigmas=sigmas, seed=1, eta=0.0), plain, atol=1e-5)
    before = pipe.scheduler
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler.from_config(before.config)
    for words, line in (({"eta": 0.5}, "FlowMatchHeunDiscreteScheduler takes no eta"),
                        ({"timesteps": [900, 100]}, "does not support custom timesteps")):  # fmt: skip
        with pytest.raises(ValueError, match=LINE.format(line)):
            pipe(**words)
    latents(pipe, eta=0.0, num_inference_steps=2)
    pipe.scheduler = before


def test_fewer_experts_as_in_the_command(pipe: ditmoe.Pipeline, run: Path, tmp_path: Path) -> None:
    file = sample_checkpoint(run, num=2, top_k=1, out=tmp_path / "s.npz")[1]
    before = latents(pipe)
    assert np.array_equal(
        np.load(file)["arr_0"], bits(pipe(num_samples=2, top_k=1, output_type="np").samples)
    )
    assert torch.equal(latents(pipe), before)
    with pytest.raises(ValueError, match=LINE.format("top_k must lie between 1 and num_experts")):
        pipe(top_k=99)


def test_pickles_are_not_written(pipe: ditmoe.Pipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=LINE.format("safe_serialization must be True")):
        pipe.save_pretrained(tmp_path / "new", safe_serialization=False)
    assert not (tmp_path / "new").exists()


def test_the_autoencoder_in_slices_and_tiles(pipe: ditmoe.Pipeline, tmp_path: Path) -> None:
    """On pictures of four tiles: each is decoded by itself, and what comes is near to the whole."""
    for name in ("enable_vae_slicing", "disable_vae_slicing", "enable_vae_tiling", "disable_vae_tiling"):
        with pytest.raises(ValueError, match=LINE.format("this pipeline has no vae")):
            getattr(pipe, name)()
    autoencoder("sd").save_pretrained(tmp_path / "vae")
    words = ["codec@modality.codec=autoencoder", f"modality.codec.path={tmp_path / 'vae'}", "trainer.steps=1"]
    trained(tmp_path / "run", *words, "modality.size=[48,48]", "trainer.batch_size=1")
    export(tmp_path / "run", tmp_path / "pipe", trust=True)
    own = opened(tmp_path / "pipe")
    for (
        module
    ) in own.vae.decoder.modules():  # random ones see how a tile differs from the whole, trained ones little
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    sizes: list[tuple[int, ...]] = []
    own.vae.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))

    def drawn() -> np.ndarray:
        sizes.clear()
        return own(num_samples=2, num_inference_steps=1, output_type="np").samples

    whole = drawn()
    assert sizes == [(2, 4, 24, 24)]
    own.enable_vae_slicing()
    assert np.allclose(drawn(), whole, atol=1 / 255)
    assert sizes == [(1, 4, 24, 24)] * 2
    own.disable_vae_slicing()
    own.enable_vae_tiling()
    tiled = drawn()
    assert len(sizes) == 4
    assert all(max(size[2:]) <= own.vae.tile_latent_min_size == 16 for size in sizes)
    assert 0 < np.abs(tiled - whole).mean() < 0.1 * whole.std()
    own.disable_vae_tiling()
    assert np.array_equal(drawn(), whole)


def test_gradient_checkpointing_changes_no_gradient(exported: Path) -> None:
    model = opened(exported).transformer.train()
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(x, torch.tensor([100.0, 900.0]), torch.tensor([0, 1]))[0].square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    calls, before = [], gradients()

    def counted(module, *inputs):
        calls.append(module)
        return torch.utils.checkpoint.checkpoint(module, *inputs, use_reentrant=False)

    for options in ({}, {"gradient_checkpointing_func": counted}):
        model.enable_gradient_checkpointing(**options)
        assert model.is_gradient_checkpointing
        assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))
    assert len(calls) == len(model.net.blocks)
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing
    gradients()
    assert len(calls) == len(model.net.blocks)


def test_half_precision_takes_half_the_memory(exported: Path) -> None:
    pipe = opened(exported)
    whole = pipe.transformer.get_memory_footprint(), pipe.memory.get_memory_footprint()
    pipe.to(torch.bfloat16)
    half = pipe.transformer.get_memory_footprint()
    assert 0.5 * whole[0] <= half < 0.51 * whole[0]
    assert pipe.memory.get_memory_footprint() == whole[1]  # it would blur every sample


def test_clips_are_frames(tmp_path: Path) -> None:
    clips(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "pipe")
    pipe = opened(tmp_path / "pipe")
    found = pipe(label=1, num_frames=13, height=16, num_inference_steps=1)
    assert [len(clip) for clip in found.frames] == [13]
    assert found.frames[0][0].size == (24, 16)
    again = pipe(label=1, frames=13, num_inference_steps=1, output_type="pt")
    assert again.frames.shape == (1, 13, 3, 16, 24)
