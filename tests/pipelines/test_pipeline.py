"""Pipelines of diffusers: the same samples as the command, and what diffusers users expect."""

import functools
import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import ditmoe
from ditmoe.config import build
from ditmoe.config.restore import restore
from ditmoe.diffusion import Sampling
from ditmoe.export import export
from ditmoe.inference import draw, sample_checkpoint
from ditmoe.pipelines import Pipeline
from modalities.image import Autoencoder as Codec
from tests.modalities.image.test_adapter import autoencoder, trained
from tests.pretrained.test_conversion import converted, state_of
from tests.training.test_trainer import trainer


def opened(folder: Path, **options) -> Pipeline:
    pipe = ditmoe.Pipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def bits(pictures: np.ndarray) -> np.ndarray:
    """8-bit pictures again."""
    assert (pictures.dtype, pictures.min() >= 0, pictures.max() <= 1) == (np.float32, True, True)
    return (pictures * 255).round().astype(np.uint8)


def latents(pipe: Pipeline, **options) -> torch.Tensor:
    return pipe(**{"num_samples": 2, **options}, output_type="latent").samples


def test_images_are_those_of_the_command_bit_for_bit(run: Path, exported: Path, tmp_path: Path) -> None:
    file = sample_checkpoint(run, num=5, seed=3, batch_size=2, out=tmp_path / "s.npz")[1]
    found = opened(exported)(num_samples=5, seed=3, batch_size=2, output_type="np")
    assert np.array_equal(np.load(file)["arr_0"], bits(found.samples))
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    moved = shutil.copytree(exported, tmp_path / "moved")
    assert np.array_equal(
        opened(moved)(num_samples=5, seed=3, batch_size=2, output_type="np").samples, found.samples
    )


def test_export_makes_its_model_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, init = [], ditmoe.DiTMoE.__init__
    counted = functools.wraps(init)(lambda self, *a, **k: made.append(init(self, *a, **k)))
    monkeypatch.setattr(ditmoe.DiTMoE, "__init__", counted)
    export(run, tmp_path / "once")
    assert len(made) == 1


def test_latents_are_those_of_the_loop_whatever_the_batch(run: Path, exported: Path) -> None:
    restored, pipe = restore(run, device=torch.device("cpu")), opened(exported)
    for guidance in (1.0, 3.0):
        sampling = Sampling(4, guidance, restored.config["sampling"]["interval"])
        steps = build.make(restored.config["scheduler"])
        asked = restored.model.conditioning.ask(5, restored.modality.classes)
        x = draw(
            restored.model, restored.modality, restored.process, steps, sampling, asked, seed=1, batch_size=5
        )
        options = {"num_samples": 5, "num_inference_steps": 4, "guidance_scale": guidance, "seed": 1}
        assert torch.equal(latents(pipe, **options), x)
        assert torch.allclose(latents(pipe, **options, batch_size=2), x, atol=1e-4)
    assert not torch.equal(latents(pipe, seed=1), latents(pipe, seed=2))


def test_clouds_are_those_of_the_command_bit_for_bit(tmp_path: Path) -> None:
    trainer(tmp_path / "run", "trainer.steps=2")[0].run()
    export(tmp_path / "run", tmp_path / "pipe")
    file = sample_checkpoint(tmp_path / "run", num=3, label="chair", out=tmp_path / "s.npz")[1]
    found = opened(tmp_path / "pipe")(label="chair", num_samples=3)
    assert np.array_equal(np.load(file)["points"], found.samples)


def test_random_labels_are_those_of_the_command(run: Path, exported: Path, tmp_path: Path) -> None:
    drawn = []
    for seed in (1, 2):
        file = sample_checkpoint(run, num=6, label="random", seed=seed, out=tmp_path / f"{seed}.npz")[1]
        found = opened(exported)(label="random", num_samples=6, seed=seed)
        assert np.load(file)["arr_1"].tolist() == found.labels.tolist()
        drawn.append(found.labels.tolist())
    assert drawn[0] != drawn[1]


def test_what_it_gives(exported: Path) -> None:
    pipe = opened(exported)
    assert pipe(label=np.array([4, 2]), num_inference_steps=1).labels.tolist() == [4, 2]
    pictures = pipe(label=["3", 7, "none"]).samples
    assert [picture.size for picture in pictures] == [(24, 16)] * 3
    assert pipe(label=["3", 7, "none"]).labels.tolist() == [3, 7, 10]
    assert pipe(output_type="latent", num_inference_steps=1).samples.shape == (1, 3, 4, 6)
    one = pipe(output_type="pt", num_inference_steps=1)
    assert (one.samples.shape, one.samples.dtype) == ((1, 3, 16, 24), torch.float32)
    assert one.images is one.samples
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
    assert opened(exported).to(torch.float64)(num_samples=1, num_inference_steps=1).samples
    assert "vae" not in {name for name, part in pipe.components.items() if part is not None}


def test_an_autoencoder_travels_in_the_folder(tmp_path: Path) -> None:
    autoencoder("sd").save_pretrained(tmp_path / "vae")
    words = ["codec@modality.codec=autoencoder", f"modality.codec.path={tmp_path / 'vae'}"]
    trained(tmp_path / "run", *words)
    expected = np.load(sample_checkpoint(tmp_path / "run", num=2, out=tmp_path / "s.npz", trust=True)[1])[
        "arr_0"
    ]
    export(tmp_path / "run", tmp_path / "pipe", trust=True)
    shutil.rmtree(tmp_path / "vae")
    found = opened(tmp_path / "pipe")(num_samples=2, output_type="np").samples
    assert np.array_equal(bits(found), expected)
    pipe = opened(tmp_path / "pipe")
    pictures = pipe(output_type="np").samples
    pipe.vae = type(pipe.vae)(**{k: v for k, v in pipe.vae.config.items() if not k.startswith("_")})
    assert not np.array_equal(pipe(output_type="np").samples, pictures)  # another one is used


@pytest.mark.parametrize("time", ["scaled", "unscaled"])
def test_converted_models_become_pipelines(golden: Callable, tmp_path: Path, time: str) -> None:
    converted(state_of(golden("dit_moe_tiny.npz")), tmp_path, time=time)
    export(tmp_path / "out", tmp_path / "latents")
    pipe = opened(tmp_path / "latents")
    drawn = pipe(label=1, num_samples=2, num_inference_steps=3).samples
    size = golden("dit_moe_tiny.npz")["x"].shape[1:]
    assert drawn.shape == (2, *size)
    assert torch.equal(latents(pipe, label=1, num_inference_steps=3), drawn)
    assert type(pipe.process).__name__ == {"scaled": "DDPM", "unscaled": "FlowMatching"}[time]
    autoencoder("sd").save_pretrained(tmp_path / "vae")
    shutil.move(tmp_path / "vae", tmp_path / "a vae, of ours")
    export(tmp_path / "out", tmp_path / "pictures", autoencoder=str(tmp_path / "a vae, of ours"))
    shutil.rmtree(tmp_path / "a vae, of ours")
    picture = opened(tmp_path / "pictures")(label=1, num_inference_steps=3).samples[0]
    assert picture.size == (2 * size[2], 2 * size[1])
    autoencoder("sd3").save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="must have the 4 latent channels of the model, got 16"):
        export(tmp_path / "out", tmp_path / "wrong", autoencoder=str(tmp_path / "vae"))
    assert not list(tmp_path.glob(".wrong*"))


def test_wrong_words_are_one_line(run: Path, exported: Path, tmp_path: Path) -> None:
    pipe = opened(exported)
    for words, line in (
        ({"label": "chair"}, "label 'chair' is not a class of this model"),
        ({"num_samples": 0}, "num_samples must be a whole number from 1, got 0"),
        ({"label": []}, "label must name at least one class, got an empty list"),
        (
            {"num_samples": 2, "generator": [torch.Generator()]},
            "generator must be one, or a list of one for each of 2 samples",
        ),
        ({"output_type": "jpg"}, "output_type must be one of pil, np, pt, latent, got 'jpg'"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number from 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1, got 0"),
        ({"num_samples": True}, "num_samples must be a whole number from 1, got True"),
        ({"num_samples": 10**9}, "1000000000 samples of shape .* need more than"),
        ({"num_images_per_prompt": 10**9}, "1000000000 samples of shape .* need more than"),
        ({"num_samples": 2**63}, "9223372036854775808 samples of shape .* need more than"),
        ({"num_inference_steps": 10**9}, "num_inference_steps must be between 1 and 10000, got 1000000000"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, .* got nan"),
        ({"guidance_scale": np.float32("inf")}, "guidance_scale must be a finite number, .* got inf"),
        ({"guidance_scale": 10**400}, "guidance_scale must be between -1000 and 1000, got 1000"),
        ({"seed": "a"}, "seed must be a whole number from 0, got 'a'"),
        ({"seed": 1.5}, r"seed must be a whole number from 0, got 1\.5"),
        ({"seed": None}, "seed must be a whole number from 0, got None"),
        ({"generator": 5}, "generator must be one, or a list of one for each of 1 samples, got int"),
        ({"generator": [None]}, "generator must be one, .* got NoneType"),
        ({"timesteps": 5}, "timesteps must be a list of 1 to 10000 numbers, got 5"),
        ({"top_k": True}, "top_k and num_experts must be whole numbers, got True"),
        ({"label": "x" * 10**6}, r"label '[x]{199}\.\.\. is not a class of this model"),
        ({"label": torch.tensor(99)}, "label 99 is not a class of this model"),
        ({"prompt": "a chair"}, "prompt must be left out: this model is not conditioned on text"),
        ({"negative_prompt": ""}, "negative_prompt must be left out: this model is not conditioned on text"),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{line}[^\n]*$"):
            as_outside_of_tests(pipe)(**{"num_inference_steps": 1, **words})
    with pytest.raises(ValueError, match=r"^scheduler must be a scheduler of diffusers, got None$"):
        pipe.scheduler = None  # KarrasVeScheduler.from_config returns that
    with pytest.raises(FileNotFoundError, match=r"holds no model_index.json"):
        Pipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a run has its own"):
        export(run, tmp_path / "new", autoencoder="x")
    for size in ("x", "5", "-1GB", "", "1e3MB"):
        with pytest.raises(ValueError, match="max_shard_size must be a size such as 5GB or 500MB, got"):
            export(run, tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()


def as_outside_of_tests(pipe: Pipeline) -> Callable[..., Any]:
    """Its call, where no annotation is checked: as far as the pipeline itself says what is wrong."""
    return functools.partial(inspect.unwrap(type(pipe).__call__), pipe)


@pytest.mark.parametrize("back", [5, "x", torch.zeros(3), torch.zeros(1, dtype=torch.int64), "meta", "int"])
def test_what_a_callback_returns_is_looked_at(back: object, exported: Path) -> None:
    """It would fail deep inside, or in the decoder."""
    pipe = opened(exported)
    shape = (1, *pipe.memory.config.shape)
    named = {"meta": torch.zeros(shape, device="meta"), "int": torch.zeros(shape, dtype=torch.int64)}
    latents = named.get(back, back) if isinstance(back, str) else back
    line = rf"^callback_on_step_end must return latents of shape {re.escape(str(shape))} on cpu, got [^\n]*$"
    with pytest.raises(ValueError, match=line):
        pipe(num_inference_steps=1, callback_on_step_end=lambda *_: {"latents": latents})


def test_what_is_no_callback_is_told_before_the_work(exported: Path) -> None:
    pipe = as_outside_of_tests(opened(exported))
    with pytest.raises(ValueError, match=r"^callback_on_step_end must be a function, got 'x'$"):
        pipe(callback_on_step_end="x")
    with pytest.raises(
        ValueError, match=r"^callback_on_step_end_tensor_inputs must be a list of names, got 5$"
    ):
        pipe(callback_on_step_end=print, callback_on_step_end_tensor_inputs=5)


def test_numbers_of_numpy_are_numbers(exported: Path) -> None:
    pipe = opened(exported)
    asked = {"num_samples": np.int64(2), "num_inference_steps": np.int32(2), "batch_size": np.int64(1)}
    own = {**asked, "guidance_scale": np.float32(2), "seed": np.int64(3), "label": torch.tensor(1)}
    plain = {"num_inference_steps": 2, "batch_size": 1, "guidance_scale": 2.0, "seed": 3, "label": 1}
    with torch.no_grad():
        drawn = as_outside_of_tests(pipe)(**own, output_type="latent", return_dict=False)[0]
    assert torch.equal(drawn, latents(pipe, **plain))


def test_half_precision_blurs_neither_codec_nor_noise(exported: Path, tmp_path: Path) -> None:
    pipe = opened(exported)
    before = latents(pipe)
    for half in (opened(exported, dtype=torch.bfloat16), opened(exported).to(torch.bfloat16)):
        assert half.dtype == half.transformer.net.embed.weight.dtype == torch.bfloat16
        near = latents(half)
        assert near.dtype == torch.float32
        assert 0 < (near - before).abs().mean() < 0.05
        assert all(torch.equal(v, half.memory.state_dict()[k]) for k, v in pipe.memory.state_dict().items())
    half.save_pretrained(tmp_path / "half")
    again = opened(tmp_path / "half").memory.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in pipe.memory.state_dict().items())


def test_clouds_in_half_precision(tmp_path: Path) -> None:
    trainer(tmp_path / "run", "trainer.steps=2")[0].run()
    export(tmp_path / "run", tmp_path / "pipe")
    near, whole = (latents(opened(tmp_path / "pipe", dtype=d)) for d in (torch.bfloat16, torch.float32))
    assert 0 < (near - whole).abs().mean() < 0.1


def test_schedulers_are_swapped_where_the_process_allows(exported: Path, tmp_path: Path) -> None:
    pipe = opened(exported)
    before, given = latents(pipe), pipe.scheduler.config
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(given)
    euler = latents(pipe, num_inference_steps=50)
    assert not torch.equal(latents(pipe), before)
    pipe.save_pretrained(tmp_path / "euler")
    assert torch.equal(latents(opened(tmp_path / "euler"), num_inference_steps=50), euler)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(given)
    with pytest.raises(ValueError, match=r"cannot follow process flow_matching; [^\n]*from_config\(pipe"):
        latents(pipe)
    pipe.scheduler = diffusers.UniPCMultistepScheduler()
    with pytest.raises(
        ValueError, match=r"must have [^\n]*prediction_type='flow_prediction', use_flow_sigmas=True"
    ):
        latents(pipe)
    pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(given)
    assert (latents(pipe, num_inference_steps=50) - euler).abs().mean() < 0.02


def test_discrete_schedulers_inherit_the_process(tmp_path: Path) -> None:
    trained(tmp_path / "run", "process=ddpm", "scheduler=ddim")
    export(tmp_path / "run", tmp_path / "pipe")
    pipe = opened(tmp_path / "pipe")
    before, given = latents(pipe, num_inference_steps=20), pipe.scheduler.config
    for kind, order in ((diffusers.DDIMScheduler, None), (diffusers.DPMSolverMultistepScheduler, 2),
                        (diffusers.EulerDiscreteScheduler, None)):  # fmt: skip
        pipe.scheduler = kind.from_config(given)  # clipping to [-1, 1] would be far off
        assert (latents(pipe, num_inference_steps=20) - before).abs().mean() < 0.02 * before.abs().mean(), (
            kind
        )
        assert pipe.scheduler.config.get("solver_order") == order
    pipe.save_pretrained(tmp_path / "again")
    assert type(opened(tmp_path / "again").scheduler) is diffusers.EulerDiscreteScheduler
    for other, line in ((diffusers.FlowMatchEulerDiscreteScheduler(), "needs process flow_matching"),
                        (diffusers.DDIMScheduler(), "must have the process's trained_betas")):  # fmt: skip
        pipe.scheduler = other
        with pytest.raises(ValueError, match=line):
            latents(pipe)


def test_one_generator_is_independent_of_the_batch_without_fresh_noise(exported: Path) -> None:
    pipe = opened(exported)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    whole, parts = (
        latents(pipe, num_samples=4, generator=torch.Generator().manual_seed(5), batch_size=size)
        for size in (4, 3)
    )
    assert torch.allclose(whole, parts, atol=1e-4)


def test_an_offloaded_autoencoder_gets_its_input_where_it_works() -> None:
    codec = Codec(autoencoder("sd"))
    codec.model._hf_hook = SimpleNamespace(execution_device=torch.device("meta"))
    assert codec._place() == torch.device("meta")
    del codec.model._hf_hook
    assert codec._place() == torch.device("cpu")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (("process=ddpm", "scheduler=unipc"), {"guidance": 3.0, "label": "random", "batch_size": 2}),
        ((), {"guidance": 1.0, "label": "none", "steps": 3}),
        (("given=0.5",), {"given": "photo", "mask": "hole", "given_guidance": 2.0, "label": "3"}),
        ((), {"given": "photo", "strength": 0.5}),
        (("+sampling.first_block_cache=1000",), {}),
        ((), {"first_block_cache": 1000}),
    ],
)
def test_each_way_of_asking_is_that_of_the_command(
    tmp_path: Path, config: tuple[str, ...], words: dict
) -> None:
    """Bit for bit, whatever is said."""
    rng = np.random.default_rng(0)
    own = {"photo": rng.integers(0, 255, (16, 24, 3), dtype=np.uint8), "hole": np.zeros((16, 24), np.uint8)}
    own["hole"][4:12, 8:16] = 255
    words = {
        name: own.get(value, value) if isinstance(value, str) else value for name, value in words.items()
    }
    trained(tmp_path / "run", *config)
    export(tmp_path / "run", tmp_path / "pipe")
    file = sample_checkpoint(tmp_path / "run", num=3, seed=5, out=tmp_path / "s.npz", **words)[1]
    names = {"guidance": "guidance_scale", "steps": "num_inference_steps"}
    said = {names.get(name, name): value for name, value in words.items()}
    found = opened(tmp_path / "pipe")(num_samples=3, seed=5, output_type="np", **said)
    assert np.array_equal(np.load(file)["arr_0"], bits(found.samples))


def test_guidance_away_from_another_pipeline(exported: Path) -> None:
    """From itself none, bit for bit; what it cannot lead away from is one line."""
    pipe, other = opened(exported), opened(exported)
    plain = latents(pipe, guidance_scale=1.0)
    assert torch.equal(latents(pipe, guidance_scale=3.0, guidance_model=other), plain)
    with torch.no_grad():
        other.transformer.net.final.linear.bias.add_(1.0)
    assert not torch.equal(latents(pipe, guidance_scale=3.0, guidance_model=other), plain)
    for options, line in (
        ({"guidance_model": str(exported), "guidance_scale": 2.0}, "guidance_model must be a pipeline"),
        ({"guidance_model": other, "guidance_scale": 1.0}, "guidance_scale must differ from 1"),
    ):
        with pytest.raises(ValueError, match=line):
            latents(pipe, **options)
