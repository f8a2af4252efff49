"""A pipeline's folder in the hands of diffusers: who imports what, what code runs, and what an error says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.utils import dynamic_modules_utils

import ditmoe
from ditmoe.export import export
from ditmoe.pipelines import Memory, Transformer
from ditmoe.pipelines.index import CODE, INDEX
from tests.modalities.image.test_adapter import autoencoder, trained
from tests.pipelines.test_diffusers import LINE
from tests.pipelines.test_pipeline import latents, opened

FRESH = """
import sys
from diffusers import DiffusionPipeline
folder = sys.argv[1]
try:
    DiffusionPipeline.from_pretrained(folder)
except ValueError as error:
    assert "pass `trust_remote_code=true`" in str(error).lower(), error
sys.modules["ditmoe"] = None  # as where it is not installed
try:
    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
except ImportError as error:
    assert str(error) == "this pipeline needs the package ditmoe: pip install ditmoe", error
del sys.modules["ditmoe"]
assert not any(name.startswith("ditmoe") for name in sys.modules)
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
print(type(pipe).__name__, [name for name, part in pipe.components.items() if part is not None])
"""


def by_diffusers(folder: Path, home: Path, **options) -> ditmoe.Pipeline:
    """Opened by diffusers itself, which copies the code of a folder to its cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(home))
        return diffusers.DiffusionPipeline.from_pretrained(folder, **options)


def test_a_program_that_imports_diffusers_alone(exported: Path, tmp_path: Path) -> None:
    surroundings = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(exported)], env=surroundings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "DiTMoEPipeline ['memory', 'transformer', 'scheduler']\n"


def test_a_run_opens_as_the_pipeline_that_export_writes(run: Path, exported: Path) -> None:
    expected = latents(opened(exported), seed=5)
    for name in (run, str(run), next((run / "checkpoints").iterdir())):
        assert torch.equal(latents(opened(name), seed=5), expected)
    half = opened(run, dtype=torch.float16)
    assert {weight.dtype for weight in half.transformer.parameters()} == {torch.float16}
    for wrong, line in (
        (
            {"variant": "fp16"},
            "variant must be left out: .* is a run, which takes dtype, text_encoder and trust",
        ),
        ({"text_encoder": "x/"}, "text_encoder must be left out: this model is not conditioned on text"),
    ):
        with pytest.raises(ValueError, match=rf"^{line}$"):
            opened(run, **wrong)


def test_a_starter_opens_by_its_name() -> None:
    pipe = opened("starter/image")
    assert [picture.size for picture in pipe(label=[3, 7], num_inference_steps=1).images] == 2 * [(32, 32)]


def test_diffusers_opens_the_same_pipeline(exported: Path, tmp_path: Path) -> None:
    pipe = opened(exported)
    for options in ({}, {"custom_pipeline": str(exported)}, {"custom_pipeline": "pipeline"}):
        found = by_diffusers(exported, tmp_path, trust_remote_code=True, **options)
        assert type(found) is ditmoe.Pipeline
        assert torch.equal(latents(found), latents(pipe))
    found.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / CODE).read_text() == (exported / CODE).read_text()
    assert torch.equal(
        latents(by_diffusers(tmp_path / "again", tmp_path, trust_remote_code=True)), latents(pipe)
    )


def test_an_autoencoder_and_an_adapter_come_too(tmp_path: Path) -> None:
    autoencoder("sd").save_pretrained(tmp_path / "vae")
    words = ["codec@modality.codec=autoencoder", f"modality.codec.path={tmp_path / 'vae'}"]
    trained(tmp_path / "run", *words)
    trained(tmp_path / "tuned", *words, f"init={tmp_path / 'run'}", "lora.rank=2", "optimizer.lr=0.05")
    export(tmp_path / "tuned", tmp_path / "pipe", trust=True, lora="keep")
    pipe, found = opened(tmp_path / "pipe"), by_diffusers(tmp_path / "pipe", tmp_path, trust_remote_code=True)
    assert type(found.vae) is diffusers.AutoencoderKL
    assert found.get_active_adapters() == pipe.get_active_adapters() == ["default"]
    assert torch.equal(latents(found), latents(pipe))
    assert ditmoe.Pipeline(**found.components).get_list_adapters() == {
        "transformer": ["default"]
    }  # not twice


def test_the_code_of_a_folder_never_runs_unless_a_person_trusts_it(exported: Path, tmp_path: Path) -> None:
    """By this package not even its own; by diffusers what is in the folder."""
    ran, folder = tmp_path / "ran", shutil.copytree(exported, tmp_path / "code")
    opened(folder)  # which holds what `export` wrote
    for code in (f"import os\nos.mkdir({str(ran)!r})\n", (exported / CODE).read_text() + "\n", ""):
        (folder / CODE).write_text(code)
        with pytest.raises(ValueError, match=LINE.format(r"pipeline\.py could hold code, refused")):
            opened(folder)
    (folder / CODE).rename(folder / "transformer" / CODE)
    (folder / "transformer" / CODE).write_text((exported / CODE).read_text())
    with pytest.raises(ValueError, match="could hold code, refused"):
        opened(folder)
    assert not ran.exists()


def test_folders_of_earlier_exports_open(exported: Path, tmp_path: Path) -> None:
    """Those named their components by ditmoe's modules, and held no code."""
    folder = shutil.copytree(exported, tmp_path / "old")
    (folder / CODE).unlink()
    index = json.loads((folder / INDEX).read_text())
    old = {
        "_class_name": "DiTMoEPipeline",
        "transformer": ["ditmoe.pipelines", "Transformer"],
        "memory": ["ditmoe.pipelines", "Memory"],
        "scheduler": ["ditmoe.diffusion", "FlowAncestralScheduler"],
    }
    assert old.keys() < index.keys()
    (folder / INDEX).write_text(json.dumps(index | old))
    assert torch.equal(latents(opened(folder)), latents(opened(exported)))
    assert type(diffusers.DiffusionPipeline.from_pretrained(folder)) is ditmoe.Pipeline
    for change, line in (
        ({"scheduler": ["subprocess", "Popen"]}, "names a component that is not trusted, refused: scheduler"),
        ({"vae": ["os", "system"]}, "names a component that is not trusted, refused: vae"),
    ):
        (folder / INDEX).write_text(json.dumps(index | old | change))
        with pytest.raises(ValueError, match=LINE.format(line)):
            diffusers.DiffusionPipeline.from_pretrained(folder)
    (folder / INDEX).write_text(json.dumps(index | old))
    torch.save({}, folder / "transformer/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="could hold code, refused"):
        diffusers.DiffusionPipeline.from_pretrained(folder)


def test_parts_of_a_folder_by_themselves(exported: Path) -> None:
    pipe = opened(exported)
    for kind in (Transformer, diffusers.AutoModel):
        model = kind.from_pretrained(str(exported), subfolder="transformer")
        assert torch.equal(latents(opened(exported, transformer=model)), latents(pipe))
    assert Memory.from_pretrained(str(exported), subfolder="memory").config.shape == pipe.memory.config.shape
    with pytest.raises(FileNotFoundError, match=r"^[^\n]*nowhere[^\n]*$"):
        Transformer.from_pretrained(exported, subfolder="nowhere")


def test_the_code_is_written_through_no_link(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "diary").write_text("dear diary")
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / CODE).symlink_to(tmp_path / "diary")
    opened(exported).save_pretrained(tmp_path / "pipe")
    assert (tmp_path / "diary").read_text() == "dear diary"
    assert (tmp_path / "pipe" / CODE).read_text() == (exported / CODE).read_text()
